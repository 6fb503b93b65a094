"""A server over HTTP: requests share batches at every stage (docs/how-to/serve.md).

Needs the extra `serve`.

Layer: serve.
"""
