"""HTTP, below the routes: `Endpoint` answers a request, `run_server` runs the application.

``protocol.py`` limits what uvicorn does not: the time and size of a request's headers.
"""

from bge_runtime.serving.http.access_log import set_up_logging
from bge_runtime.serving.http.dialects import (
    Dialect,
    dialect_of_path,
    error_body,
    error_status,
    error_type,
)
from bge_runtime.serving.http.endpoint import Answer, Endpoint, Gate, Handler
from bge_runtime.serving.http.server import run_server

__all__ = [
    "Answer",
    "Dialect",
    "Endpoint",
    "Gate",
    "Handler",
    "dialect_of_path",
    "error_body",
    "error_status",
    "error_type",
    "run_server",
    "set_up_logging",
]
