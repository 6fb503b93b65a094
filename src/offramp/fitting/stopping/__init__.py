"""Fitting of stopping networks: policies trained on a trace by the reward of where they stop.

Layer: fitting.  Source: Guan et al., IJCAI 2018; methods.md 3.
"""
