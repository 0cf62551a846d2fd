"""The page at /ui, in a real browser."""

from __future__ import annotations

import re
from importlib import resources
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.helpers.browser import CONTRASTS, running_browser
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.servers import running_server

QUERY = "When does the ferry to the island leave?"
PASSAGES = (
    "Let the dough rest for an hour before you shape the loaves.",
    "The island has two beaches, a lighthouse and a small bakery.",
    "Boats to the island depart from pier 4 at noon and at six in the evening.",
    "Trains to the capital leave every half hour from platform 2.",
)
"""What the page's form has at first."""

COMPARED = (
    "document.querySelector('.ranking') && $('results').getAttribute('aria-busy') === 'false'"
)
LIVE = "document.body.dataset.state === 'live'"
NAMES = "[...document.querySelectorAll('.card h3')].map((e) => e.textContent)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with running_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium):
    chromium.emulate()
    chromium.console(), chromium.requested_urls()
    yield chromium
    chromium.driver.get("about:blank")


@pytest.fixture(scope="module")
def server(tiny_bundle, tiny_m3_bundle, chromium):
    """Two models; ``chromium`` comes first, so that without it none is loaded."""
    with running_server(f"{tiny_bundle}=tiny", f"{tiny_m3_bundle}=m3") as server:
        yield server


def write(browser, *, model=None, query=None, passages=None):
    """Fill in the form."""
    for name, value in (("model", model), ("query", query), ("passages", passages)):
        if value is not None:
            text = value if isinstance(value, str) else "\n".join(value)
            browser.run("$(arguments[0]).value = arguments[1]", name, text)


def compare(browser, **form):
    write(browser, **form)
    browser.run("$('picture').replaceChildren(); $('compare').click()")
    browser.wait(COMPARED)


def embed(server, model, texts, kind, **options):
    body = {"model": model, "input": texts, "input_type": kind, **options}
    answer = server.client.post("/v1/embeddings", json=body)
    return answer.raise_for_status().json()["data"]


def test_page_loads_without_errors_and_asks_no_other_host(browser, server):
    browser.open(f"{server.url}/ui")
    compare(browser)
    assert browser.console() == []
    hosts = {urlsplit(url).netloc for url in browser.requested_urls() if url.startswith("http")}
    assert hosts == {urlsplit(server.url).netloc}


def test_policy_of_the_page_admits_only_its_own_code(browser, server):
    policy = server.client.get("/ui").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    browser.open(f"{server.url}/ui")
    browser.run("$('picture').innerHTML = '<img src=x onerror=\"window.ran = true\">'")
    browser.wait("document.querySelector('#picture img').complete")
    assert not browser.run("return window.ran")


def test_file_holds_no_inline_styles_and_handlers_and_names_no_host():
    page = resources.files("bge_runtime.serving").joinpath("ui.html").read_text(encoding="utf-8")
    assert not re.search(r"<[^>]*\s(style|on\w+)=", page)
    hosts = set(re.findall(r"https?://[\w.]+", page))
    assert hosts == {"http://www.w3.org"}  # the namespace of SVG


def test_models_and_what_is_in_force_are_shown(browser, server):
    browser.open(f"{server.url}/ui")
    browser.wait(f"{NAMES}.length === 2")
    cards = browser.texts(".card")
    models = server.client.get("/ui/stats").json()["models"]
    assert [model["name"] for model in models] == ["tiny", "m3"]
    for card, model in zip(cards, models, strict=True):
        engine = model["engine"]
        for fact in (model["name"], "ready", engine["engine"], engine["version"], "cosine ≥ 0."):
            assert fact in card
        assert f"{engine['precision']}, variant {engine['variant']}" in card
    assert "dense, sparse, ColBERT" in cards[1]


def test_figures_follow_the_server(browser, server):
    browser.open(f"{server.url}/ui")
    embed(server, "tiny", ["one text"] * 40, "passage")
    browser.wait("/[1-9]\\d*\\stexts/.test(document.querySelector('.card .facts').textContent)")
    browser.wait("document.querySelector('.card .chart .fill').getAttribute('d')")
    label = browser.run("return document.querySelector('.card .chart').getAttribute('aria-label')")
    assert label.startswith("Throughput: texts a second")


def test_bars_are_in_the_order_of_the_similarities(browser, server):
    browser.open(f"{server.url}/ui")
    compare(browser, model="tiny")
    (query,) = embed(server, "tiny", [QUERY], "query")
    passages = embed(server, "tiny", list(PASSAGES), "passage")
    scores = [float(np.dot(query["embedding"], item["embedding"])) for item in passages]
    order = np.argsort(scores)[::-1]
    assert browser.texts(".ranking .text") == [PASSAGES[i] for i in order]
    assert browser.texts(".ranking .label") == [f"P{i + 1}" for i in order]
    shown = [float(text.replace("−", "-")) for text in browser.texts(".ranking .number")]
    np.testing.assert_allclose(shown, np.array(scores)[order], atol=6e-4)
    ends = browser.run(
        "return [...document.querySelectorAll('.bar i')]"
        ".map((e) => e.getBoundingClientRect().right)"
    )
    assert ends == sorted(ends, reverse=True)
    assert len(set(ends)) > 1
    assert f"Nearest to the query: P{order[0] + 1}" in browser.text("#summary")
    cells = browser.texts("tbody td")
    assert len(cells) == 25
    assert float(cells[1].replace("−", "-")) == pytest.approx(scores[0], abs=6e-3)


def test_words_are_shaded_by_their_lexical_weights(browser, server):
    browser.open(f"{server.url}/ui")
    passages = [
        "The ferry to the island 🚢 leaves at noon.",
        "Ferries, the island; 渡轮 to the boat.",
    ]
    compare(browser, model="m3", query="the ferry to the island", passages=passages)
    browser.run("document.querySelector('input[value=sparse]').click()")
    (query,) = embed(server, "m3", ["the ferry to the island"], "query", return_sparse=True)
    found = embed(server, "m3", passages, "passage", return_sparse=True)
    tokens = server.client.post("/m3/tokenize", json={"inputs": passages}).json()

    def weights(item):
        sparse = item["sparse_embedding"]
        return dict(zip(sparse["indices"], sparse["values"], strict=True))

    of_query = weights(query)
    scores = [
        sum(of_query.get(id_, 0) * weight for id_, weight in weights(item).items())
        for item in found
    ]
    order = np.argsort(scores)[::-1]
    shown = [float(text) for text in browser.texts(".chosen .number")]
    np.testing.assert_allclose(shown, np.array(scores)[order], atol=6e-4)
    for row, i in enumerate(order):
        item = f".ranking li:nth-child({row + 2})"  # the query is above them
        of_passage = weights(found[i])
        weighty = [t for t in tokens[i] if not t["special"] and of_passage.get(t["id"], 0) > 0]
        words = [passages[i][token["start"] : token["stop"]].strip() for token in weighty]
        assert browser.texts(f"{item} mark") == words
        shared = [w for w, t in zip(words, weighty, strict=True) if t["id"] in of_query]
        assert browser.texts(f"{item} mark.shared") == shared
        levels = browser.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((e) => Number.parseInt(e.style.getPropertyValue('--level')))",
            f"{item} mark",
        )
        by_weight = np.argsort([of_passage[token["id"]] for token in weighty])
        assert sorted(levels) == [levels[k] for k in by_weight]
        assert browser.text(f"{item} .text") == passages[i]
        parts = [float(text.split("=")[1]) for text in browser.texts(f"{item} .shares .number")]
        assert sum(parts) == pytest.approx(scores[i], abs=5e-3)


def test_page_of_one_model_works_below_its_base_path(browser, server):
    browser.open(f"{server.url}/m3/ui")
    compare(browser, model="m3")
    assert browser.texts(".ranking mark")
    assert browser.console() == []


def test_colbert_scores_are_the_mean_of_best_matches(browser, server):
    browser.open(f"{server.url}/ui")
    compare(browser, model="m3")
    browser.run("document.querySelector('input[value=colbert]').click()")
    (query,) = embed(server, "m3", [QUERY], "query", return_colbert_vecs=True)
    rows = np.array(query["colbert_vecs"])
    expected = [
        (rows @ np.array(item["colbert_vecs"]).T).max(axis=1).mean()
        for item in embed(server, "m3", list(PASSAGES), "passage", return_colbert_vecs=True)
    ]
    shown = [float(text) for text in browser.texts(".chosen .number")]
    np.testing.assert_allclose(shown, sorted(expected, reverse=True), atol=6e-4)


def test_whole_job_can_be_done_with_the_keyboard(browser, server):
    from selenium.webdriver import Keys

    browser.open(f"{server.url}/ui")
    browser.wait(f"{NAMES}.length === 2")

    def focused():
        return browser.run("const e = document.activeElement; return e.id || e.value || e.tagName")

    def tab_to(name):
        for _ in range(20):
            if focused() == name:
                outline = "return getComputedStyle(document.activeElement).outlineStyle"
                assert browser.run(outline) == "solid", name
                return
            browser.press(Keys.TAB)
        pytest.fail(f"Tab does not reach {name}")

    browser.press(Keys.TAB, Keys.ENTER)  # the link that skips the models
    assert focused() == "query"
    browser.press("a", holding=Keys.CONTROL)
    browser.press("boats")
    tab_to("passages")
    browser.press("a", holding=Keys.CONTROL)
    browser.press("boats", Keys.ENTER, "rye bread", Keys.ENTER, "boats and bread")
    browser.press(Keys.ENTER, holding=Keys.CONTROL)
    browser.wait(COMPARED)
    assert sorted(browser.texts(".ranking .text")) == ["boats", "boats and bread", "rye bread"]
    browser.press(Keys.TAB, holding=Keys.SHIFT)
    browser.press(Keys.TAB, holding=Keys.SHIFT)
    tab_to("model")
    browser.press("m")  # m3
    tab_to("compare")
    browser.press(Keys.ENTER)
    browser.wait("document.querySelector('.choices')")
    tab_to("dense")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait("document.querySelector('#map-title').textContent === 'All pairs, Sparse'")
    assert focused() == "sparse"


def test_key_is_asked_for_and_kept_in_the_tab(browser, tiny_bundle, tmp_path):
    from selenium.webdriver import Keys

    keys = tmp_path / "keys"
    keys.write_text("a-good-key\n")
    with running_server(tiny_bundle, "--api-keys", keys) as server:
        browser.open(f"{server.url}/ui")
        assert browser.run("return document.body.dataset.state") == "locked"
        assert browser.run("return document.activeElement.id") == "key"
        browser.press("a-wrong-key", Keys.ENTER)
        browser.wait("document.querySelector('#key-error').textContent")
        assert browser.text("#key-error") == "The server does not accept this key."
        browser.press("a-good-key", Keys.ENTER)
        browser.wait(LIVE)
        assert browser.run("return document.querySelector('#key-form').hidden")
        compare(browser)
        assert browser.run("return localStorage.length") == 0
        browser.open(f"{server.url}/ui")
        assert browser.run("return document.body.dataset.state") == "live"
        browser.run("document.querySelector('#forget-key').click()")
        browser.wait("document.body.dataset.state === 'locked'")
        assert browser.run("return sessionStorage.length") == 0


def test_server_that_went_away_is_shown_and_comes_back(browser, tiny_bundle):
    with running_server(tiny_bundle) as server:
        browser.open(f"{server.url}/ui")
        assert browser.run("return document.body.dataset.state") == "live"
    browser.wait("document.body.dataset.state === 'away'")
    assert browser.text("#state") == "not answering"
    assert "does not answer" in browser.text("#banner")
    browser.run("$('compare').click()")
    browser.wait("$('error').textContent")
    assert "does not answer" in browser.text("#error")
    with running_server(tiny_bundle, "--port", str(urlsplit(server.url).port)):
        browser.wait(LIVE)
        assert browser.run("return document.querySelector('#banner').hidden")
        compare(browser)
        assert browser.text("#error") == ""


def test_error_of_the_server_is_told_in_plain_words(browser, tiny_bundle):
    with running_server(tiny_bundle, "--max-inputs", "2") as server:
        browser.open(f"{server.url}/ui")
        browser.wait(f"{NAMES}.length === 1")
        browser.run("$('compare').click()")
        browser.wait("$('error').textContent")
        plain = "This is more than the server takes in one request. It says: "
        assert browser.text("#error").startswith(plain)
        compare(browser, passages=PASSAGES[:2])
        assert browser.text("#error") == ""


@pytest.mark.parametrize("model", ["tiny", "m3"])
def test_narrow_window_does_not_scroll_sideways(browser, server, model):
    browser.emulate(width=400)
    browser.open(f"{server.url}/ui")
    compare(browser, model=model, passages=["W" * 300, *PASSAGES * 3])
    widths = browser.run(
        "const {scrollWidth, clientWidth} = document.documentElement;"
        "return [scrollWidth, clientWidth]"
    )
    assert widths[0] == widths[1]


def test_text_that_looks_like_html_stays_text(browser, server):
    hostile = [
        "<img src=x onerror='window.ran = true'>",
        "<script>window.ran = true</script>",
        "&lt;b&gt; \"quoted\" 'text'",
    ]
    browser.open(f"{server.url}/ui")
    for model in ("tiny", "m3"):
        compare(browser, model=model, query=hostile[0], passages=hostile)
        shown = browser.texts(".ranking li[data-label] .text")
        assert sorted(shown) == sorted(hostile)
        assert browser.run("return $('picture').querySelectorAll('img, script, b').length") == (
            browser.run("return $('picture').querySelectorAll('.shares b, tbody th b').length")
        )
    assert not browser.run("return window.ran")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_texts_is_at_least_aa(browser, server, scheme):
    browser.emulate(scheme=scheme)
    browser.open(f"{server.url}/ui")
    compare(browser, model="m3")
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 100
    assert [found for found in contrasts if found[0] < 4.5] == []


def test_a_reranker_sorts_passages_by_its_scores(browser, made_once):
    bundle = reranker_bundle("xlm-roberta", targets=("cpu",))
    with running_server(f"{bundle}=ranker") as server:
        browser.open(f"{server.url}/ui")
        compare(browser)
        body = {"query": QUERY, "documents": list(PASSAGES)}
        results = server.client.post("/v1/rerank", json=body).json()["results"]
        assert browser.texts(".ranking .text") == [PASSAGES[each["index"]] for each in results]
        shown = [float(text) for text in browser.texts(".ranking .number")]
        scores = [each["relevance_score"] for each in results]
        np.testing.assert_allclose(shown, scores, atol=6e-4)
        assert "Relevance scores of 4" in browser.text("#summary")
        (card,) = browser.texts(".card")
        assert "a score for each pair" in card
        assert "pairs" in card.partition("Parity")[2]
        assert browser.texts("table") == []
        browser.run("$('curl').open = true")
        browser.wait("$('curl').textContent.includes('v1/rerank')")
        assert browser.console() == []
