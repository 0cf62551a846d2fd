"""TODO."""

from bge_export.encoder.exporter import (
    ProgressCallback,
    VariantReport,
    check_space,
    checked_tokens,
    export_bundle,
    hash_files,
    prove,
    provenance,
    settings_of,
)

__all__ = [
    "ProgressCallback",
    "VariantReport",
    "check_space",
    "checked_tokens",
    "export_bundle",
    "hash_files",
    "prove",
    "provenance",
    "settings_of",
]
