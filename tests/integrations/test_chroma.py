"""Chroma in its embedded form with our embedding functions, also in a process that comes later."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel, FlagModel
from bge_runtime.errors import BundleError, ModelNotFoundError
from tests.helpers.integrations import SAME_VECTOR
from tests.helpers.runtime import TEXTS, assert_fp32_on_cpu
from tests.helpers.texts import NO_LIST, NO_TEXT

pytest.importorskip("chromadb", reason="chromadb is not installed")

import chromadb
from chromadb import Schema, SparseVectorIndexConfig, VectorIndexConfig

from bge_runtime.integrations import chroma
from bge_runtime.integrations.chroma import BgeEmbeddingFunction, BgeM3SparseEmbeddingFunction

PASSAGES = ["A heat pump moves warmth.", "Rye is a grain.", "Paris is in France."]
QUERY = "how do heat pumps work?"


def later(code: str, *arguments: object) -> str:
    """Run code in a process of its own, with every warning an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME_VECTOR)


@pytest.fixture
def client(tmp_path: Path):
    return chromadb.PersistentClient(str(tmp_path / "chroma"))


def test_a_collection_holds_the_models_vectors(client, full_tiny_bundle: Path):
    function = BgeEmbeddingFunction(str(full_tiny_bundle))
    collection = client.create_collection("passages", embedding_function=function)
    collection.add(ids=[str(row) for row in range(len(TEXTS))], documents=TEXTS)
    assert_fp32_on_cpu(function.model)
    model = FlagModel(str(full_tiny_bundle), use_fp16=False)
    kept = collection.get(include=["embeddings"])
    rows = [int(name) for name in kept["ids"]]
    assert_same(kept["embeddings"], model.encode(TEXTS)[rows])

    # Queries get the instruction of the model's authors.
    instruction = model.bundle.manifest.model.query_instruction
    assert instruction
    found = collection.query(query_texts=[QUERY], n_results=len(TEXTS))
    query = model.encode(instruction + QUERY)
    distances = {
        int(name): d for name, d in zip(found["ids"][0], found["distances"][0], strict=True)
    }
    expected = 1 - model.encode(TEXTS) @ query
    assert_same([distances[row] for row in range(len(TEXTS))], expected)


@pytest.mark.parametrize("given", ["Find: ", ""], ids=["own", "none"])
def test_the_instruction_can_be_chosen(full_tiny_bundle: Path, given: str):
    function = BgeEmbeddingFunction(str(full_tiny_bundle), query_instruction=given)
    model = FlagModel(str(full_tiny_bundle), use_fp16=False)
    assert_same(function.embed_query([QUERY]), model.encode([given + QUERY]))
    assert_same(function([QUERY]), model.encode([QUERY]))


REOPEN = """
import json, sys
import chromadb
import bge_runtime.integrations.chroma
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("passages")
collection.add(ids=["later"], documents=["Wheat is a grain, too."])
found = collection.query(query_texts=["Which cereal do farmers grow?"], n_results=2)
kept = collection.get(ids=["later"], include=["embeddings"])
print(json.dumps([found["ids"][0], kept["embeddings"][0].tolist()]))
models = bge_runtime.integrations.chroma._open_once.__wrapped__.cache_info()
assert models.misses == 1, models
"""


def test_a_reopened_collection_embeds_alike(minilm_bundle, tmp_path: Path):
    bundle = str(minilm_bundle("mean"))
    function = BgeEmbeddingFunction(
        bundle, query_instruction="", max_length=64, model_kwargs={"devices": ["cpu"]}
    )
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    collection = client.create_collection("passages", embedding_function=function)
    collection.add(ids=["heat", "rye", "paris"], documents=PASSAGES)

    ids, vector = json.loads(later(REOPEN, tmp_path / "chroma"))
    assert set(ids) == {"rye", "later"}
    assert_same(vector, FlagModel(bundle, use_fp16=False).encode("Wheat is a grain, too."))
    kept = collection.configuration["embedding_function"]
    assert kept.get_config() == function.get_config()
    assert kept.max_length == 64


def test_a_collection_that_is_reopened_without_this_module_says_so(tiny_bundle: Path, client):
    client.create_collection("passages", embedding_function=BgeEmbeddingFunction(str(tiny_bundle)))
    with pytest.MonkeyPatch.context() as patch:
        from chromadb.utils.embedding_functions import known_embedding_functions

        patch.delitem(known_embedding_functions, "bge_runtime")
        with pytest.raises(ValueError, match="bge_runtime not found"):
            client.get_collection("passages").query(query_texts=[QUERY])


def test_a_missing_model_is_an_error_at_first_use(tmp_path: Path):
    function = BgeEmbeddingFunction(str(tmp_path / "gone"))
    with pytest.raises(ModelNotFoundError):
        function(["text"])


def test_options_that_a_collection_cannot_store_are_rejected(tiny_bundle: Path):
    with pytest.raises(TypeError, match="JSON"):
        BgeEmbeddingFunction(str(tiny_bundle), model_kwargs={"devices": object()})


def test_the_model_is_opened_once(tiny_m3_bundle: Path):
    dense = BgeEmbeddingFunction(str(tiny_m3_bundle))
    again = BgeEmbeddingFunction.build_from_config(dense.get_config())
    sparse = BgeM3SparseEmbeddingFunction(str(tiny_m3_bundle))
    assert dense.model is again.model is sparse.model
    other = BgeEmbeddingFunction(str(tiny_m3_bundle), query_instruction="Find: ")
    assert other.model is not dense.model


def test_model_kwargs_choose_a_faster_precision(full_tiny_bundle: Path):
    fast = BgeEmbeddingFunction(str(full_tiny_bundle), model_kwargs={"use_fp16": True})
    assert fast.model.engine.info == FlagModel(str(full_tiny_bundle)).engine.info


# -- Lexical weights ----------------------------------------------------------------------


def lexical(bundle: Path, texts):
    model = BGEM3FlagModel(str(bundle), use_fp16=False)
    return model.encode(texts, return_sparse=True, max_length=1024)["lexical_weights"]


def assert_same_weights(ours, expected):
    for indices, values, weights in zip(*ours, expected, strict=True):
        assert indices == sorted(map(int, weights))
        assert_same(values, [weights[str(index)] for index in indices])


def test_sparse_vectors_are_m3s_lexical_weights(tiny_m3_bundle: Path):
    function = BgeM3SparseEmbeddingFunction(str(tiny_m3_bundle))
    assert_fp32_on_cpu(function.model)
    expected = lexical(tiny_m3_bundle, TEXTS)
    assert any(expected)
    for rows in (function(TEXTS), function.embed_query(TEXTS)):
        assert_same_weights(([r.indices for r in rows], [r.values for r in rows]), expected)


def test_a_model_without_lexical_weights_is_rejected(tiny_bundle: Path):
    with pytest.raises(BundleError, match="without lexical weights"):
        BgeM3SparseEmbeddingFunction(str(tiny_bundle))(["text"])


def m3_schema(bundle: Path) -> Schema:
    """A schema as people write it for hybrid search."""
    dense, sparse = BgeEmbeddingFunction(str(bundle)), BgeM3SparseEmbeddingFunction(str(bundle))
    schema = Schema().create_index(config=VectorIndexConfig(embedding_function=dense))
    index = SparseVectorIndexConfig(embedding_function=sparse, source_key="#document")
    return schema.create_index(config=index, key="sparse")


REBUILD = """
import json, sys
from chromadb import Schema
import bge_runtime.integrations.chroma
schema = Schema.deserialize_from_json(json.loads(sys.argv[1]))
sparse = schema.keys["sparse"].sparse_vector.sparse_vector_index.config.embedding_function
dense = schema.keys["#embedding"].float_list.vector_index.config.embedding_function
rows = sparse(json.loads(sys.argv[2]))
print(json.dumps([[r.indices for r in rows], [r.values for r in rows]]))
print(json.dumps([row.tolist() for row in dense(json.loads(sys.argv[2]))]))
"""


def test_a_schema_is_rebuilt_with_both_functions(tiny_m3_bundle: Path):
    # That is how a collection is reopened. Chroma Cloud keeps such a schema; the embedded
    # form refuses it, as the next test tells.
    kept = json.dumps(m3_schema(tiny_m3_bundle).serialize_to_json())
    sparse, dense = later(REBUILD, kept, json.dumps(PASSAGES)).splitlines()
    assert_same_weights(json.loads(sparse), lexical(tiny_m3_bundle, PASSAGES))
    model = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)
    assert_same(json.loads(dense), model.encode(PASSAGES)["dense_vecs"])


def test_a_collection_with_such_a_schema_makes_sparse_vectors_of_its_documents(
    client, tiny_m3_bundle: Path
):
    schema = m3_schema(tiny_m3_bundle)
    with pytest.raises(chromadb.errors.InvalidArgumentError, match="not enabled in local"):
        client.create_collection("passages", schema=schema)
    # What its client does before anything goes to the cloud.
    collection = client.create_collection("passages")
    collection._model["serialized_schema"] = schema.serialize_to_json()
    rows = [
        metadata["sparse"]
        for metadata in collection._apply_sparse_embeddings_to_metadatas(None, PASSAGES)
    ]
    expected = lexical(tiny_m3_bundle, PASSAGES)
    assert_same_weights(([r.indices for r in rows], [r.values for r in rows]), expected)


def test_anything_but_a_list_of_texts_is_rejected(tiny_m3_bundle: Path):
    dense = BgeEmbeddingFunction(str(tiny_m3_bundle))
    sparse = BgeM3SparseEmbeddingFunction(str(tiny_m3_bundle))
    for embed in (dense, dense.embed_query, sparse, sparse.embed_query):
        for make, message in [*NO_LIST.values(), (lambda: "one", "a string")]:
            with pytest.raises(TypeError, match=f"texts must be a list of strings, not {message}"):
                embed(make())
        for make, message in NO_TEXT.values():
            with pytest.raises(TypeError, match=rf"texts\[1\] must be a string, not (?:{message})"):
                embed(make())


def test_threads_that_start_at_once_open_one_model(tiny_bundle: Path, monkeypatch):
    opened, start = [], threading.Barrier(8)
    real = chroma.open_model

    def slow(*arguments, **options):
        opened.append(arguments)
        time.sleep(0.2)  # long enough for every thread to arrive
        return real(*arguments, **options)

    def use(_):
        function = BgeEmbeddingFunction(str(tiny_bundle), max_length=17, query_instruction="Ask: ")
        start.wait()
        return function.model

    monkeypatch.setattr(chroma, "open_model", slow)
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(use, range(8)))
    assert len(opened) == len(set(map(id, models))) == 1
