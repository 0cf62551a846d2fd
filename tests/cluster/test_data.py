"""`Embedder` on Ray Data: rows, columns and vectors, whatever happens to nodes."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray

from bge_runtime import BGEM3FlagModel, FlagModel
from bge_runtime.bulk import InputError, granted_options
from bge_runtime.integrations.ray import Embedder
from tests.cluster.conftest import ThreeNodes

SAME_VALUE = 1e-6
"""Batches are others than those of `encode`, so that sums have another order."""

TEXTS = ["one", None, "", "two words", "zwei Wörter 🙂"]


class Reporting(Embedder):
    """Tells what the model runs on."""

    def threads(self) -> int:
        return self._embedder._encoder.model.engine.info.threads


@pytest.fixture(scope="module")
def dense(_cluster: ThreeNodes, bundles: dict[str, str]) -> Any:
    """An actor with a processor and the dense model."""
    _cluster.complete()
    actor = ray.remote(Reporting).options(num_cpus=1).remote(bundles["dense"])
    yield actor
    ray.kill(actor)


def test_an_actor_computes_with_what_it_was_granted(dense):
    assert ray.get(dense.threads.remote()) == 1


@pytest.mark.parametrize(
    ("granted", "asked", "options"),
    [
        ({"CPU": 3.0}, {}, {"threads": 3}),
        ({"CPU": 0.5}, {}, {"threads": 1}),
        ({}, {}, {"threads": 1}),
        ({"CPU": 3.0}, {"threads": 2, "precision": "fp32"}, {"threads": 2, "precision": "fp32"}),
        ({"GPU": 1.0}, {}, {"devices": ["cuda:0"]}),
        ({"GPU": 0.25, "CPU": 2.0}, {}, {"devices": ["cuda:0"]}),
        ({"GPU": 2.0}, {}, {"devices": ["cuda:0", "cuda:1"]}),
        ({"GPU": 1.0}, {"devices": "cpu"}, {"devices": "cpu"}),
    ],
)
def test_options_are_what_was_granted_and_what_was_asked(monkeypatch, granted, asked, options):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    context = SimpleNamespace(get_actor_id=lambda: "actor", get_assigned_resources=lambda: granted)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert granted_options(asked) == options


def test_outside_of_actors_nothing_is_granted(cluster):
    assert granted_options({"precision": "fp32"}) == {"precision": "fp32"}


BATCHES = {
    "numpy": {"id": np.arange(5), "text": np.array(TEXTS, dtype=object)},
    "pandas": pd.DataFrame({"id": range(5), "text": TEXTS}),
    "arrow": pa.table({"id": range(5), "text": TEXTS}),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_batches_of_any_format_become_tables_with_vectors(dense, bundles, batch):
    found = ray.get(dense.__call__.remote(batch))
    assert found.column_names == ["id", "text", "dense"]
    assert found["id"].to_pylist() == list(range(5))
    assert found["text"].to_pylist() == TEXTS
    kind = found.schema.field("dense").type
    assert (kind.list_size, kind.value_type) == (48, pa.float32())
    vectors = found["dense"].to_pylist()
    assert vectors[1] is None  # as its text
    expected = FlagModel(bundles["dense"]).encode(["one", "", "two words", "zwei Wörter 🙂"])
    np.testing.assert_allclose([vectors[row] for row in (0, 2, 3, 4)], expected, atol=SAME_VALUE)


def test_an_empty_batch_has_the_same_columns(dense):
    empty = ray.get(dense.__call__.remote(BATCHES["arrow"].slice(0, 0)))
    assert empty.schema == ray.get(dense.__call__.remote(BATCHES["arrow"])).schema
    assert len(empty) == 0


def test_three_outputs_and_other_options(cluster, bundles):
    texts = ["one", "two words", None, "three more words"]
    actor = ray.remote(Embedder).options(num_cpus=1).remote(
        bundles["m3"], text=("title", "body"), template="{title}: {body}", keep=["id"],
        return_sparse=True, return_colbert_vecs=True, dtype="float16",
    )  # fmt: skip
    table = pa.table({"id": [7, 8, 9, 10], "title": ["a", "b", None, None], "body": texts})
    found = ray.get(actor.__call__.remote(table))
    ray.kill(actor)
    assert found.column_names == ["id", "dense", "sparse", "colbert"]
    assert found.schema.field("dense").type.value_type == pa.float16()
    assert (
        found["dense"].null_count == found["sparse"].null_count == found["colbert"].null_count == 1
    )
    model = BGEM3FlagModel(bundles["m3"])
    given = ["a: one", "b: two words", ": three more words"]
    expected = model.encode(given, return_sparse=True, return_colbert_vecs=True)
    for row, number in enumerate((0, 1, 3)):
        one = {name: found[name][number].as_py() for name in found.column_names}
        np.testing.assert_allclose(one["dense"], expected["dense_vecs"][row], atol=1e-3)
        weights = expected["lexical_weights"][row]
        assert one["sparse"]["indices"] == sorted(map(int, weights))
        np.testing.assert_allclose(
            one["sparse"]["values"],
            [weights[str(token)] for token in one["sparse"]["indices"]],
            atol=SAME_VALUE,
        )
        np.testing.assert_allclose(one["colbert"], expected["colbert_vecs"][row], atol=1e-3)


def test_what_is_wrong_with_a_batch_is_said(dense):
    for table, error, said in [
        (pa.table({"words": ["one"]}), InputError, "no single column 'text'"),
        (pa.table({"text": [1]}), InputError, "holds int64"),
        (pa.table({"text": ["one"], "dense": [1]}), ValueError, "already has a column 'dense'"),
    ]:
        with pytest.raises(error, match=said):
            ray.get(dense.__call__.remote(table))


ROWS = 3000


def embedded(dataset: Any, model: str) -> pa.Table:
    """Return a dataset's rows with vectors, in the order of their ids."""
    vectors = dataset.map_batches(
        Embedder,
        fn_constructor_kwargs={"model": model},
        batch_size=100,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=3),
    )
    return pa.concat_tables(ray.get(vectors.to_arrow_refs())).sort_by("id")


def test_a_dataset_is_embedded_though_a_node_is_killed(cluster: ThreeNodes, bundles, dense):
    ray.kill(dense)  # its processor is needed
    ray.data.DataContext.get_current().enable_progress_bars = False
    texts = [f"entry {row}: {'some words ' * (row * 7 % 60)}" for row in range(ROWS)]
    dataset = ray.data.from_arrow(pa.table({"id": range(ROWS), "text": texts})).repartition(30)
    dataset = dataset.materialize()
    killer = threading.Timer(6, cluster.kill_a_node)
    killer.start()
    started = time.monotonic()
    found = embedded(dataset, bundles["dense"])
    seconds = time.monotonic() - started
    killer.join()
    assert seconds > 6
    assert found["id"].to_pylist() == list(range(ROWS))
    assert found["text"].to_pylist() == texts
    expected = FlagModel(bundles["dense"]).encode(texts)
    np.testing.assert_allclose(
        np.stack(found["dense"].to_numpy()), expected, atol=SAME_VALUE, rtol=0
    )
