"""Everything that encoders' and decoders' exports share after the graphs are written.

Both exporters use it; the command line uses the checks of the output and the upload.
"""

from bge_export.bundle.finish import BundleContents, count_last_steps, finish_bundle
from bge_export.bundle.gate import (
    VariantReport,
    check_variant,
    make_report,
    require_parity,
)
from bge_export.bundle.options import DEFAULT_OPTIONS, ExportOptions
from bge_export.bundle.parity_tokens import tokenize_parity_pairs, tokenize_parity_texts
from bge_export.bundle.progress import NO_PROGRESS, Progress
from bge_export.bundle.sentence_transformers import complete_settings, write_folder
from bge_export.bundle.staging import (
    check_json_files,
    check_output,
    check_space,
    resolve_output,
    staging_directory,
)
from bge_export.bundle.upload import check_target, push

__all__ = [
    "DEFAULT_OPTIONS",
    "NO_PROGRESS",
    "BundleContents",
    "ExportOptions",
    "Progress",
    "VariantReport",
    "check_json_files",
    "check_output",
    "check_space",
    "check_target",
    "check_variant",
    "complete_settings",
    "count_last_steps",
    "finish_bundle",
    "make_report",
    "push",
    "require_parity",
    "resolve_output",
    "staging_directory",
    "tokenize_parity_pairs",
    "tokenize_parity_texts",
    "write_folder",
]
