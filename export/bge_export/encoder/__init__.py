"""Export encoders: trace the model with PyTorch and lower the trace to each target's graph.

The command line uses `export_encoder`.

To add a family of encoders:

1. Add its ``model_type`` to `ENCODERS` in `bge_runtime.sources.model_classes`.
2. If its tokenizer's class is new, add it to `bge_export.checkpoint.tokenizer.classes`.
3. Add a tiny checkpoint of it to ``tests/export/encoder/test_exporter.py``. The parity gate shows
   whether the trace and the graph passes are right.

To add a pooling method, see `bge_export.encoder.pooling`.
"""

from bge_export.encoder.exporter import export_encoder

__all__ = [
    "export_encoder",
]
