"""What a process of Ray does with a model: open it within what the process was granted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from bge_runtime.system import cache_folder, hold_file_lock

logger = logging.getLogger(__name__)

_TOKENIZER_THREADS = "RAYON_NUM_THREADS"
"""Environment variable that `tokenizers` reads when it starts its threads, at its first call."""


def granted_options(model_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of a model, with the devices and threads that Ray granted this process.

    An actor with GPUs gets those as ``devices``; Ray shows it no others. Any other one gets as many
    ``threads`` as whole processors were granted, and one at least. What the options say stays, and
    all of them do outside of actors and tasks.

    Args:
        model_options: Arguments of `bge_runtime.FlagAutoModel.from_finetuned`.
    """
    import ray

    options, context = dict(model_options or {}), ray.get_runtime_context()
    if context.get_actor_id() is None and context.get_task_id() is None:
        return options
    granted = context.get_assigned_resources()
    processors, gpus = int(granted.get("CPU", 0)), granted.get("GPU", 0)
    if options.get("devices") is None and gpus:
        options["devices"] = [f"cuda:{number}" for number in range(max(1, int(gpus)))]
    if options.get("threads") is None and not gpus:
        options["threads"] = max(1, processors)
    # Ray's processes share a machine: without a limit, each would tokenize on all processors. One
    # with GPUs may have no processors to its name, and must not wait for its tokens.
    tokenizing = options.get("threads") or processors
    if tokenizing:
        os.environ.setdefault(_TOKENIZER_THREADS, str(tokenizing))
    return options


@contextlib.contextmanager
def opening_lock(model: str) -> Iterator[None]:
    """Keep other processes of this machine from opening a model in the meantime.

    So a node downloads, exports and checks a model once, and TensorRT builds its engines once: the
    processes that follow find the result in the cache. If that is on a file system without locks,
    each process looks for itself.

    Args:
        model: Its name or folder.
    """
    name = hashlib.sha256(json.dumps(model).encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_folder() / "opening"
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                hold_file_lock(
                    folder / f"{name}.lock",
                    waiting=f"another process of this machine opens {model}; waiting for it",
                )
            )
        except (OSError, NotImplementedError) as error:
            logger.warning(
                "the cache cannot be locked (%s): each process looks for %s on its own",
                error,
                model,
            )
        yield
