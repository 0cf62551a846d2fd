"""The file of weights: mapped once, and in memory only where something still reads it."""

from __future__ import annotations

import gc
import mmap
import re
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bge_runtime import FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.encoding import parallel
from bge_runtime.engines import openvino, weights_file
from bge_runtime.engines.weights_file import map_weights
from bge_runtime.errors import BundleError
from tests.helpers.runtime import TEXTS, assert_same

SIZE = 4 << 20

only_with_smaps = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="this system does not tell what is in memory"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def bytes_in_memory(path: Path) -> list[int]:
    """Return how much of each mapping of a file is in the memory of this process."""
    smaps = Path("/proc/self/smaps").read_text("utf-8")
    mappings = smaps.split(f" {path.resolve()}\n")[1:]
    found = [re.search(r"^Rss: +(\d+) kB", mapping, re.MULTILINE) for mapping in mappings]
    return [int(one.group(1)) * 1024 for one in found if one]


@only_with_smaps
def test_what_was_read_is_dropped_and_can_be_read_again(path: Path):
    weights = map_weights(path)
    expected = int(weights.array.sum())
    assert bytes_in_memory(path) == [SIZE]
    with weights.read_once():
        assert int(weights.array.sum()) == expected
    assert bytes_in_memory(path) == [0]
    assert int(weights.array.sum()) == expected


@only_with_smaps
def test_rows_of_tables_are_kept_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch):
    now_s = [100.0]
    monkeypatch.setattr(weights_file, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    weights = map_weights(path)
    weights.array.sum()
    now_s[0] += 0.9
    weights.drop_rows()
    assert bytes_in_memory(path) == [SIZE]
    now_s[0] += 0.2
    weights.drop_rows()
    assert bytes_in_memory(path) == [0]
    weights.array.sum()
    weights.drop_rows()
    assert bytes_in_memory(path) == [SIZE]


@only_with_smaps
def test_an_error_while_it_is_read_leaves_no_page_and_no_thread(path: Path):
    weights = map_weights(path)

    def interrupted() -> None:
        with weights.read_once():
            weights.array.sum()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert bytes_in_memory(path) == [0]
    assert not [thread for thread in threading.enumerate() if thread.name == "bge-weights"]


def test_it_is_read_where_no_thread_can_be_started(path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    weights = map_weights(path)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with weights.read_once():
        assert weights.array[:4].tobytes() == path.read_bytes()[:4]


def test_it_is_read_where_pages_cannot_be_dropped(path: Path, monkeypatch: pytest.MonkeyPatch):
    class Plain(mmap.mmap):
        def __getattribute__(self, name: str) -> object:
            if name == "madvise":  # as on Windows
                raise AttributeError(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(mmap, "mmap", Plain)
    weights = map_weights(path)
    with weights.read_once():
        assert weights.array.tobytes() == path.read_bytes()
    monkeypatch.setattr(weights_file, "_KEEP_ROWS_S", 0.0)
    weights.drop_rows()


def test_a_file_is_mapped_once_until_another_one_takes_its_place(path: Path, tmp_path: Path):
    first = map_weights(path)
    assert map_weights(path) is first
    (tmp_path / "new").write_bytes(b"other weights")
    (tmp_path / "new").replace(path)
    assert map_weights(path).array.tobytes() == b"other weights"
    assert first.array.size == SIZE
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


@only_with_smaps
def test_engines_of_a_bundle_read_one_mapping(
    full_tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(openvino, "computing_precision", lambda precision: "f32")
    monkeypatch.setattr(openvino.OpenVinoEngine, "unavailable_reason", staticmethod(lambda _: None))
    monkeypatch.setattr(parallel, "_OPEN_AFTER_TOKENS", 0)
    monkeypatch.setattr(parallel, "_fill_streams", lambda lengths, _: len(lengths) > 1)
    model = FlagModel(str(full_tiny_bundle), precision="bf16", threads=2)
    one_by_one = np.stack([model.encode(text) for text in TEXTS])
    assert_same(model.encode(TEXTS), one_by_one, tolerance=1e-5)
    assert len(model.engines) == 2
    opened = Bundle.open(full_tiny_bundle)
    weights = full_tiny_bundle / opened.graph("openvino").weights
    assert len(bytes_in_memory(weights)) == 1


def test_weights_that_cannot_be_mapped_are_a_bundle_error(
    full_tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path) -> None:
        raise OSError("No such device")

    monkeypatch.setattr(openvino, "map_weights", refuse)
    monkeypatch.setattr(openvino, "computing_precision", lambda precision: "f32")
    monkeypatch.setattr(openvino.OpenVinoEngine, "unavailable_reason", staticmethod(lambda _: None))
    with pytest.raises(BundleError, match=r"cannot open .*bf16\.xml: No such device"):
        FlagModel(str(full_tiny_bundle), precision="bf16")
