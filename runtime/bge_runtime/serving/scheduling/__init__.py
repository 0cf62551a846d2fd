"""Schedule the texts of many requests onto engines.

`Work` in ``work.py`` is one request's texts, `Lane` in ``lanes.py`` the queue of those that wait,
`Scheduler` in ``scheduler.py`` decides which engine computes which of them, and ``execution.py``
runs a batch. Everything here is threads; nothing knows HTTP.
"""

from bge_runtime.serving.scheduling.execution import EngineGroup, EngineParts
from bge_runtime.serving.scheduling.scheduler import Scheduler, SchedulerOptions, StalledError
from bge_runtime.serving.scheduling.work import BatchKey, Collector, Work, WorkCancelledError

__all__ = [
    "BatchKey",
    "Collector",
    "EngineGroup",
    "EngineParts",
    "Scheduler",
    "SchedulerOptions",
    "StalledError",
    "Work",
    "WorkCancelledError",
]
