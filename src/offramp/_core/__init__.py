"""What every layer shares: errors, checks, shapes, the topology of stages, costs, whole files.

Layer: _core.  Imports nothing of ours.
"""
