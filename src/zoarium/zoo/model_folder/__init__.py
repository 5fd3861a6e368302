"""One model as a folder that plain PyTorch or transformers loads."""

from __future__ import annotations

from zoarium.zoo.model_folder.export import FORMATS, export_model

__all__ = ["FORMATS", "export_model"]
