"""Export decoders: build their graphs from the configuration, and stream the weights.

The command line uses `export_decoder`; `bge_export.synthetic` uses the list of weights.

To add a family of decoders:

1. Add its ``model_type`` to `DECODERS` in `bge_runtime.sources.model_classes`.
2. Add its defaults to `_FAMILIES` in `config`, and its own parts to the graphs in `graph`,
   `graph_cuda` and `graph_tensorrt`.
3. If its tokenizer's class is new, add it to `bge_export.checkpoint.tokenizer.classes`.
4. Add a tiny shape of it to ``tests/helpers/decoders.py``, which all tests of decoders use.

To add a target, see `bge_export.targets`.
"""

from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.exporter import export_decoder
from bge_export.decoder.weights import Weight, list_weights

__all__ = [
    "DecoderConfig",
    "Weight",
    "export_decoder",
    "list_weights",
]
