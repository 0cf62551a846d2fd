"""Embed files of any size into shards: ``bge-embed`` with a folder as output.

`embed_dataset` in ``embed.py`` finds the input, opens the model and compares the job with what is
in the output folder; `run_shards` in ``shards.py`` computes what is missing. cli and integrations
import from here.
"""

from bge_runtime.bulk.cluster import TableEmbedder, granted_options, opening_lock
from bge_runtime.bulk.embed import JobSummary, count_shards, embed_dataset
from bge_runtime.bulk.files import InputError
from bge_runtime.bulk.options import JobArguments, default_rows_per_shard
from bge_runtime.bulk.output import OutputError

__all__ = [
    "InputError",
    "JobArguments",
    "JobSummary",
    "OutputError",
    "TableEmbedder",
    "count_shards",
    "default_rows_per_shard",
    "embed_dataset",
    "granted_options",
    "opening_lock",
]
