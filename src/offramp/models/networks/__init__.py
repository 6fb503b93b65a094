"""The networks themselves, each in a file that is read when somebody asks for it.

Layer: models.
"""
