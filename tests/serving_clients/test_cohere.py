"""Cohere's clients with another base address, and those of LangChain and LlamaIndex upon them."""

from __future__ import annotations

import asyncio

import cohere
import pytest
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaIndexCohereRerank

from tests.helpers.guides import code_of
from tests.serving_clients.servers import Reranker, assert_ranked

KEY = "none"


def pairs_of(answer) -> list[tuple[int, float]]:
    return [(result.index, result.relevance_score) for result in answer.results]


@pytest.mark.parametrize("top", [None, 3])
def test_the_client_of_the_second_version(ranker: Reranker, top: int | None):
    client = cohere.ClientV2(KEY, base_url=ranker.url)
    asked = {"model": ranker.name, "query": ranker.query, "documents": ranker.texts}
    answer = client.rerank(**asked, top_n=top)
    assert_ranked(pairs_of(answer), ranker, top)
    assert answer.id
    assert answer.meta.tokens.input_tokens > len(ranker.texts)
    if top is None:
        found = asyncio.run(cohere.AsyncClientV2(KEY, base_url=ranker.url).rerank(**asked))
        assert_ranked(pairs_of(found), ranker, top)


def test_the_second_version_cuts_documents(ranker: Reranker):
    client = cohere.ClientV2(KEY, base_url=ranker.url)
    asked = {"model": ranker.name, "query": ranker.query, "documents": [ranker.too_long]}
    whole, cut = (client.rerank(**asked, max_tokens_per_doc=count) for count in (4096, 8))
    assert cut.meta.tokens.input_tokens < whole.meta.tokens.input_tokens


def test_the_client_of_the_first_version(ranker: Reranker):
    client = cohere.Client(KEY, base_url=ranker.url)
    documents = [{"text": text, "source": "here"} for text in ranker.texts]
    answer = client.rerank(
        model=ranker.name, query=ranker.query, documents=documents, top_n=4, return_documents=True
    )
    assert_ranked(pairs_of(answer), ranker, 4)
    assert [each.document.text for each in answer.results] == [
        ranker.texts[row] for row in ranker.order[:4]
    ]
    titled = [{"title": text} for text in ranker.texts]
    answer = client.rerank(
        model=ranker.name, query=ranker.query, documents=titled, rank_fields=["title"]
    )
    assert_ranked(pairs_of(answer), ranker, None)


def test_a_refused_request_is_the_error_of_its_status(ranker: Reranker):
    client = cohere.ClientV2(KEY, base_url=ranker.url)
    with pytest.raises(cohere.NotFoundError) as raised:
        client.rerank(model="other", query="a", documents=["b"])
    assert "this server has ranker" in raised.value.body["message"]
    with pytest.raises(cohere.BadRequestError) as raised:
        client.rerank(model=ranker.name, query="a", documents=[])
    assert "there is no input" in raised.value.body["message"]


def test_langchain_compresses_documents(ranker: Reranker):
    reranker = CohereRerank(model=ranker.name, base_url=ranker.url, cohere_api_key=KEY, top_n=5)
    documents = [Document(text, metadata={"row": row}) for row, text in enumerate(ranker.texts)]
    found = reranker.compress_documents(documents, ranker.query)
    scores = [(each.metadata["row"], each.metadata["relevance_score"]) for each in found]
    assert_ranked(scores, ranker, 5)
    ranked = reranker.rerank(ranker.texts, ranker.query, top_n=None)
    assert_ranked([(each["index"], each["relevance_score"]) for each in ranked], ranker, None)


def test_llama_index_sorts_nodes(ranker: Reranker):
    processor = LlamaIndexCohereRerank(top_n=4, model=ranker.name, api_key=KEY, base_url=ranker.url)
    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(row)))
        for row, text in enumerate(ranker.texts)
    ]
    found = processor.postprocess_nodes(nodes, query_str=ranker.query)
    assert_ranked([(int(each.node.node_id), each.score) for each in found], ranker, 4)


def test_the_code_of_the_guide_runs(ranker: Reranker, capsys: pytest.CaptureFixture[str]):
    code = code_of("guides/serving/rerankers.md", "Serve rerankers")
    for old, new in (("http://localhost:8080", ranker.url), ("bge-reranker-v2-m3", ranker.name)):
        assert code.count(old) == 1
        code = code.replace(old, new)
    exec(compile(code, "page", "exec"), {})
    assert capsys.readouterr().out == "2 True\n"
