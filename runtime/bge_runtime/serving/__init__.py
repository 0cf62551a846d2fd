"""Serve models over HTTP, as ``bge-serve`` does.

A request takes this way: `http.Endpoint` reads it, a handler of ``routes`` understands it,
`ServedEmbedder.embed` or `ServedReranker.rank` in ``models`` tokenizes and queues it, and the
`scheduling.Scheduler` computes it. ``app.py`` puts the parts together.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bge_runtime.serving.opening import open_served_model
from bge_runtime.serving.options import ServeOptions

if TYPE_CHECKING:
    from bge_runtime.serving.app import create_app
    from bge_runtime.serving.http import run_server, set_up_logging

__all__ = [
    "ServeOptions",
    "create_app",
    "open_served_model",
    "run_server",
    "set_up_logging",
]

_MODULES = {"create_app": "app", "run_server": "http", "set_up_logging": "http"}


def __getattr__(name: str) -> Any:
    """Import what needs the packages of the extra ``serve`` when it is used.

    ``bge-serve --help`` does without them.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
