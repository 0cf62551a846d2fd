"""The recipe for Spark is run in an environment of its own: `make spark`."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("pyspark") is None:
    collect_ignore_glob = ["test_*.py"]
