"""The configuration of a run: its sections, what they may hold, and what contradicts.

Layer: project.
"""
