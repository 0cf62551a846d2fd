"""Very long texts: the same tokens, or an error, and no memory."""

from __future__ import annotations

import psutil
import pytest
from starlette.testclient import TestClient

from bge_runtime import BGEM3FlagModel, FlagModel
from bge_runtime.serving import create_app
from bge_runtime.serving.models import long_texts
from tests.helpers.servers import running_server


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def model(request, tiny_bundle, tiny_m3_bundle):
    if request.param == "bert":
        return FlagModel(str(tiny_bundle), precision="fp32")
    return BGEM3FlagModel(str(tiny_m3_bundle), precision="fp32")


LONG = {
    "words": "plain words and more of them " * 40_000,
    "lines": "a line of text, with marks.\r\n" * 40_000,
    "spaces": "a" + " " * 60_000 + "word " * 200_000,
    "first": "中文字" * 5_000 + " then plain words" * 60_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_text_has_the_vector_of_its_beginning(model, text):
    assert len(text) > long_texts.MAX_CHARACTERS
    expected = model.encode([text], max_length=model.max_length)
    with TestClient(create_app(model)) as client:
        answer = client.post("/embed", json={"inputs": [text, "short"]})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-truncated-inputs"] == "1"
        refused = client.post("/embed", json={"inputs": text, "truncate": False})
        assert refused.status_code == 422
    dense = expected["dense_vecs"] if isinstance(expected, dict) else expected
    assert answer.json()[0] == pytest.approx(dense[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("text", ["a" * 600_000, "a." * 300_000, "中" * 600_000])
def test_a_long_text_that_cannot_be_cut_is_refused(model, text):
    with TestClient(create_app(model)) as client:
        answer = client.post("/embed", json={"inputs": ["short", text]})
        assert answer.status_code == 413
        assert "input 1 has 600,000 characters" in answer.json()["error"]
        allowed = client.post("/embed", json={"inputs": text[: long_texts.MAX_CHARACTERS]})
        assert allowed.status_code == 200


def test_the_end_of_a_very_long_text_cannot_be_kept(model):
    body = {"inputs": LONG["words"], "truncation_direction": "left"}
    with TestClient(create_app(model)) as client:
        assert client.post("/embed", json=body).status_code == 413


def test_the_longest_texts_take_no_memory(tiny_bundle):
    with running_server(tiny_bundle) as server:
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        for text in ("a." * 15_000_000, "中" * 10_000_000, "words " * 5_000_000):
            for path, name in (("/embed", "inputs"), ("/v1/embeddings", "input")):
                answer = server.client.post(path, json={name: text})
                assert answer.status_code in (200, 413)
            assert server.client.post("/tokenize", json={"inputs": text}).status_code == 413
        ids = server.client.post("/decode", json={"ids": [100] * 2_000_000})
        assert ids.status_code == 413
        assert process.memory_info().rss - before < 500_000_000
        assert server.client.get("/health").status_code == 200
