"""Cutting one network into segments: its graph, where it can be cut, and what runs there.

Layer: stages.
"""
