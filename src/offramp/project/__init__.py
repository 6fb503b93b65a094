"""Projects: from a configuration and a folder to examples, cascades, choices, bundles and reports.

Layer: project.  What the command line does, for Python: nothing here parses options or prints.
"""
