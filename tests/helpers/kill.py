"""A program that runs jobs in processes of its own, and kills them at chosen moments.

It forks them after the imports, before there are threads: a job of a tiny model takes 0.3 s then.
Arguments: a JSON list of jobs. Each is a dictionary: ``arguments`` of `embed_dataset`, and perhaps
``event``, the number of the step at which it is killed, or ``after_s``. It prints a JSON list: for
each job its ``status`` (negative: killed by that signal), ``events`` and ``seconds``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_STEPS = ("open", "fsync", "replace", "link", "unlink", "rename")


def count_steps(event: int | None) -> list[int]:
    """Kill this process at a step of the file system or an engine; return a list with the count.

    Even events are killed before the step, and odd ones after it.
    """
    count = [0]
    lock = threading.Lock()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            with lock:
                before, after = count[0] == event, count[0] + 1 == event
                count[0] += 2
            if before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return step

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))
    from bge_runtime.engines.ort_cpu import OrtCpuEngine

    OrtCpuEngine.run = counted(OrtCpuEngine.run)  # type: ignore[method-assign]
    return count


def run_job(job: dict[str, Any], answer: int) -> None:
    """Run a job in this process, and write the number of its steps and its time."""
    from bge_runtime.bulk import embed_dataset

    count = count_steps(job.get("event"))
    started_s = time.monotonic()
    summary = embed_dataset(**job["arguments"])
    assert summary.complete or job["arguments"].get("shard")
    document = {"events": count[0], "seconds": time.monotonic() - started_s}
    os.write(answer, json.dumps(document).encode())


def main() -> None:
    """Run jobs one after the other, or all at once if the second argument is ``together``."""
    import bge_runtime.bulk
    import bge_runtime.engines.ort_cpu  # noqa: F401

    jobs = json.loads(sys.argv[1])
    together = sys.argv[2:] == ["together"]
    found: list[dict[str, Any]] = []
    running: list[tuple[int, int]] = []
    for job in jobs:
        receive, answer = os.pipe()
        child = os.fork()
        if not child:
            try:
                run_job(job, answer)
            except BaseException as error:  # noqa: BLE001
                print(type(error).__name__, error, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(answer)
        running.append((child, receive))
        if "after_s" in job:
            time.sleep(job["after_s"])
            os.kill(child, signal.SIGKILL)
        if not together:
            found.append(_wait(*running.pop()))
    found += [_wait(*each) for each in running]
    print(json.dumps(found))


def _wait(child: int, receive: int) -> dict[str, Any]:
    with os.fdopen(receive, "rb") as answer:
        data = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, **(json.loads(data) if data else {})}


if __name__ == "__main__":
    main()
