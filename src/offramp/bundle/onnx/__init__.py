"""ONNX: a cascade with its policy as one file, or as a folder with a small runner.

Layer: bundle.
"""

from offramp.bundle.onnx.folder import Folder, export_folder
from offramp.bundle.onnx.single_file import SingleFile, export_single_file

__all__ = ["Folder", "SingleFile", "export_folder", "export_single_file"]
