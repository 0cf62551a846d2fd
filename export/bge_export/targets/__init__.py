"""The targets of an export: which graphs there are, for which engine, device and precision.

The command line and both exporters use it.

To add a target for encoders: add a row to `encoder` and to `TARGETS`, list the graph passes that
make it (`bge_export.passes`), and add its variants to `bge_runtime.sources.export_targets`, which a
test compares with the tables. For decoders: add a row to `decoder`, and its graph to
`bge_export.decoder.planned_graph`. The parity gate then measures it.
"""

from bge_export.targets.base import AnyTarget, TargetVariant
from bge_export.targets.decoder import DECODER_TARGETS, DecoderTarget
from bge_export.targets.encoder import (
    CPU,
    CUDA,
    CUDA_UNIFORM,
    INT8,
    OPENVINO,
    PORTABLE,
    TARGETS,
    TENSORRT,
    TRACE_OPSET,
    Passes,
    Target,
    for_model,
)
from bge_export.targets.selection import format_target_table, select_decoder_targets, select_targets

__all__ = [
    "CPU",
    "CUDA",
    "CUDA_UNIFORM",
    "DECODER_TARGETS",
    "INT8",
    "OPENVINO",
    "PORTABLE",
    "TARGETS",
    "TENSORRT",
    "TRACE_OPSET",
    "AnyTarget",
    "DecoderTarget",
    "Passes",
    "Target",
    "TargetVariant",
    "for_model",
    "format_target_table",
    "select_decoder_targets",
    "select_targets",
]
