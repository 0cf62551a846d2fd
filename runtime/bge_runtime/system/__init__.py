"""The machine and the operating system: processors, GPUs, memory, files, locks and the cache.

It knows nothing of models. Used by all folders above it, and by bge_export and bge_bench.
"""

from bge_runtime.system import cache, file_hash, nvidia
from bge_runtime.system.background import BackgroundTask, call_and_note, take_one
from bge_runtime.system.cache import cache_folder
from bge_runtime.system.console import format_table, on_terminal
from bge_runtime.system.cpus import (
    allowed_cpus,
    cpu_model,
    default_threads,
    multiplies_in_8_bits,
    usable_cpus,
    vector_extensions,
)
from bge_runtime.system.files import (
    check_not_pointer,
    check_utf8,
    expand_user,
    local_path,
    parse_json,
    read_json,
)
from bge_runtime.system.locks import KeyLocks, hold_file_lock, once
from bge_runtime.system.memory import available_memory, peak_memory
from bge_runtime.system.user_warnings import warn_user
from bge_runtime.system.versions import installed_versions, owners

__all__ = [
    "BackgroundTask",
    "KeyLocks",
    "allowed_cpus",
    "available_memory",
    "cache",
    "cache_folder",
    "call_and_note",
    "check_not_pointer",
    "check_utf8",
    "cpu_model",
    "default_threads",
    "expand_user",
    "file_hash",
    "format_table",
    "hold_file_lock",
    "installed_versions",
    "local_path",
    "multiplies_in_8_bits",
    "nvidia",
    "on_terminal",
    "once",
    "owners",
    "parse_json",
    "peak_memory",
    "read_json",
    "take_one",
    "usable_cpus",
    "vector_extensions",
    "warn_user",
]
