"""Serve models over HTTP, as ``bge-serve`` does.

A request takes this way: `http.Endpoint` reads it, a handler of ``routes`` understands it,
`ServedModel.embed` in ``model.py`` tokenizes and queues it, and the `scheduling.Scheduler` computes
it. ``app.py`` puts the parts together.
"""

from bge_runtime.serving.app import create_app
from bge_runtime.serving.http import run_server, set_up_logging
from bge_runtime.serving.options import ServeOptions

__all__ = ["ServeOptions", "create_app", "run_server", "set_up_logging"]
