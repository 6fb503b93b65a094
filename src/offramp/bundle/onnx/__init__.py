"""ONNX: a model as one file, or as a folder with a small runner.

Layer: bundle.
"""

from offramp.bundle.onnx.export import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]
