"""Fusing: segments between which hardly anybody leaves run in one piece.

Layer: stages.
"""
