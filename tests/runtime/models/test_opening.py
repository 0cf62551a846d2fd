"""A model's tokenizer is read while its engine compiles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bge_runtime import FlagModel
from bge_runtime.errors import BundleError
from bge_runtime.models import opened
from tests.helpers.runtime import TEXTS, assert_same


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_tokenizer_is_read_once_while_the_engine_compiles(
    full_tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, engine: str
):
    events: list[str] = []
    inner, outer = opened.TextTokenizer, opened.EngineSet

    def read(path: Path) -> opened.TextTokenizer:
        events.append("read")
        assert threading.current_thread().name == "bge-tokenizer"
        return inner(path)

    def open_engines(*arguments: object, on_compile: Callable[[], None]) -> opened.EngineSet:
        def start() -> None:
            on_compile()
            events.append("compile")
            time.sleep(0.5)

        engines = outer(*arguments, on_compile=start)
        events.append("opened")
        return engines

    monkeypatch.setattr(opened, "TextTokenizer", read)
    monkeypatch.setattr(opened, "EngineSet", open_engines)
    model = FlagModel(str(full_tiny_bundle), engine=engine, use_fp16=False)
    assert events == ["compile", "read", "opened"]
    monkeypatch.undo()
    expected = FlagModel(str(full_tiny_bundle), engine=engine, use_fp16=False)
    assert_same(model.encode(TEXTS), expected.encode(TEXTS), tolerance=1e-5)


def test_an_engine_that_says_nothing_is_opened_first(
    full_tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    outer = opened.EngineSet

    def says_nothing(
        bundle: opened.Bundle, options: opened.EngineSetOptions, *, on_compile: object
    ) -> opened.EngineSet:
        assert on_compile is not None
        return outer(bundle, options)

    monkeypatch.setattr(opened, "EngineSet", says_nothing)
    assert FlagModel(str(full_tiny_bundle), use_fp16=False).encode(TEXTS).shape[0] == len(TEXTS)


def test_errors_of_both_are_raised_and_no_thread_is_left(
    full_tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: object, **options: object) -> None:
        raise BundleError("it cannot be read")

    for name in ("TextTokenizer", "EngineSet"):
        with monkeypatch.context() as patch:
            patch.setattr(opened, name, refuse)
            with pytest.raises(BundleError, match="it cannot be read"):
                FlagModel(str(full_tiny_bundle), use_fp16=False)
        assert "bge-tokenizer" not in [thread.name for thread in threading.enumerate()]


def test_a_model_opens_where_no_thread_can_be_started(
    full_tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    model = FlagModel(str(full_tiny_bundle), use_fp16=False)
    assert model.encode("one").shape == (model.bundle.manifest.model.dim,)
