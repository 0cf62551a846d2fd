"""TODO."""

from bge_export.encoder.exporter import (
    Row,
    Step,
    check_space,
    checked_tokens,
    export_bundle,
    hash_files,
    prove,
    provenance,
    settings_of,
)
from bge_export.encoder.load import first_lines, quiet

__all__ = [
    "Row",
    "Step",
    "check_space",
    "checked_tokens",
    "export_bundle",
    "first_lines",
    "hash_files",
    "prove",
    "provenance",
    "quiet",
    "settings_of",
]
