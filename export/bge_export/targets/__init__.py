"""The targets of an export: which graphs there are, for which engine, device and precision.

The command line and both exporters use it.

To add a target for encoders: add a row to `encoder` and to `ENCODER_TARGETS`, list the graph passes
that make it (`bge_export.passes`), and add its variants to `bge_runtime.sources.export_targets`,
which a test compares with the tables. For decoders: add a row to `decoder`, and its graph to
`bge_export.decoder.planned_graph`. The parity gate then measures it.

To add a precision, add a target as above, and:

1. its tolerance, with the reason, to `TOLERANCES` in `bge_runtime.bundle.parity`;
2. to `ON_REQUEST` in `bge_runtime.variants.selection`, if it is to be run only by name;
3. to `computing_precision` in `bge_runtime.engines.openvino`, if OpenVINO runs it;
4. its limit in retrieval to `SCORE_LIMITS` in `bge_bench.experiments.retrieval`, and its name to
   `_OUR_PRECISIONS` in `bge_bench.systems.lineup`.
"""

from bge_export.targets.base import Target, TargetVariant
from bge_export.targets.decoder import DECODER_TARGETS, DecoderTarget
from bge_export.targets.encoder import (
    CPU,
    CUDA,
    CUDA_UNIFORM,
    ENCODER_TARGETS,
    INT8,
    OPENVINO,
    PORTABLE,
    TENSORRT,
    TRACE_OPSET,
    EncoderTarget,
    Passes,
    for_model,
)
from bge_export.targets.selection import (
    format_target_table,
    select_decoder_targets,
    select_encoder_targets,
)

__all__ = [
    "CPU",
    "CUDA",
    "CUDA_UNIFORM",
    "DECODER_TARGETS",
    "ENCODER_TARGETS",
    "INT8",
    "OPENVINO",
    "PORTABLE",
    "TENSORRT",
    "TRACE_OPSET",
    "DecoderTarget",
    "EncoderTarget",
    "Passes",
    "Target",
    "TargetVariant",
    "for_model",
    "format_target_table",
    "select_decoder_targets",
    "select_encoder_targets",
]
