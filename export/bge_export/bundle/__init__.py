"""TODO."""

from bge_export.bundle.staging import (
    check_json_files,
    check_output,
    commit_directory,
    staging_directory,
)
from bge_export.bundle.upload import check_target, push

__all__ = [
    "check_json_files",
    "check_output",
    "check_target",
    "commit_directory",
    "push",
    "staging_directory",
]
