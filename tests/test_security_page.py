"""SECURITY.md names options that exist, and their defaults. What it says of bundles is tested in
tests/runtime/bundle/test_hostile_bundles.py."""

from __future__ import annotations

import inspect
import re

from bge_export.cli import main as bge_export
from bge_runtime import FlagModel
from bge_runtime.cli.serve import main as bge_serve
from bge_runtime.serving.http.protocol import HEADER_TIMEOUT_S
from bge_runtime.serving.options import ServeOptions
from tests.helpers.bundles import ROOT

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
DEFAULTS = ServeOptions()


def test_options_exist():
    known = {
        name for command in (bge_serve, bge_export) for each in command.params for name in each.opts
    }
    named = set(re.findall(r"(?<![-|])(--[a-z][\w-]+)", PAGE)) - {"--verify"}
    assert len(named) > 8
    assert named <= known


def test_limits_are_the_defaults():
    size = re.search(r"size of a request \| (\d+) MB, (\d+) texts, ([\d,]+) tokens", PAGE)
    assert float(size[1]) == DEFAULTS.max_body_bytes / 1e6
    assert int(size[2]) == DEFAULTS.max_inputs
    assert int(size[3].replace(",", "")) == DEFAULTS.max_request_tokens
    time = re.search(r"headers (\d+) s, body (\d+) s, request (\d+) s", PAGE)
    limits = HEADER_TIMEOUT_S, DEFAULTS.body_timeout_s, DEFAULTS.request_timeout_s
    assert tuple(map(float, time.groups())) == limits


def test_nothing_is_open_or_trusted_by_default():
    assert DEFAULTS.api_keys == DEFAULTS.cors_origins == ()
    assert DEFAULTS.otlp_endpoint is None
    host = next(each.default for each in bge_serve.params if each.name == "host")
    assert host == "127.0.0.1"
    assert inspect.signature(FlagModel).parameters["trust_remote_code"].default is False
    assert not any("trust" in each.name for each in bge_serve.params)
