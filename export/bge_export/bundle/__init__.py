"""TODO."""

from bge_export.bundle.staging import check_json_files, check_output, draft_beside, put_in_place
from bge_export.bundle.upload import check_target, push

__all__ = [
    "check_json_files",
    "check_output",
    "check_target",
    "draft_beside",
    "push",
    "put_in_place",
]
