import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_bench.datasets.catalogue import DATASETS, Dataset, data_folder, problems
from bge_bench.datasets.data import load_passages, load_retrieval, load_sts
from bge_bench.datasets.fetching import beir_from_squad, fetch
from bge_bench.errors import BenchError

SQUAD = {
    "data": [
        {
            "title": "Bread",
            "paragraphs": [
                {
                    "context": "Rye stands cold winters. ",
                    "qas": [
                        {"id": "q1", "question": "What stands cold winters?", "answers": []},
                        {"id": "q2", "question": "耐寒的是什么？", "answers": []},
                    ],
                },
                {
                    "context": "Die Hefe\u2028geht zweimal.",
                    "qas": [{"id": "q3", "question": "How often does it rise?", "answers": []}],
                },
            ],
        },
        {
            "title": "Canals",
            "paragraphs": [{"context": "Locks lift boats.", "qas": []}],
        },
    ]
}
RAW = json.dumps(SQUAD, indent=1).encode()
PAIRS = b'A girl sings.,A girl is singing.,4.8\r\n"Rye, mostly",A boat,0.2\r\n'


class Server(ThreadingHTTPServer):
    """Serves bytes by path, and parts of them; can break off, and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.most_bytes: int | None = None
        self.ranges = True
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        content = self.server.files.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        begin = 0
        if wanted and self.server.ranges:
            begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin:][: self.server.most_bytes])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def bread(server) -> Dataset:
    """A retrieval dataset of our own, as the server publishes it."""
    server.files["bread.json"] = RAW
    made = beir_from_squad(SQUAD, id_prefix="b")
    return Dataset(
        name="bread-en",
        kind="retrieval",
        path="bread/en",
        url=server.url("bread.json"),
        size_bytes=len(RAW),
        sha256=sha256(RAW).hexdigest(),
        files={f"bread/en/{name}": sha256(content).hexdigest() for name, content in made.items()},
        id_prefix="b",
    )


@pytest.fixture
def pairs(server) -> Dataset:
    """Pairs of sentences of our own, as the server publishes them."""
    server.files["pairs.csv"] = PAIRS
    digest = sha256(PAIRS).hexdigest()
    return Dataset(
        name="pairs-en",
        kind="sts",
        path="pairs/pairs.csv",
        url=server.url("pairs.csv"),
        size_bytes=len(PAIRS),
        sha256=digest,
        files={"pairs/pairs.csv": digest},
    )


@pytest.fixture
def known(bread, pairs, monkeypatch):
    """Replace the datasets of the benchmarks by these."""
    datasets = {dataset.name: dataset for dataset in (bread, pairs)}
    for module in ("datasets.catalogue", "datasets.data", "cli.data"):
        monkeypatch.setattr(f"bge_bench.{module}.DATASETS", datasets)
    # The options that list the names were made when the module was read.
    (option,) = (p for p in main.commands["data"].params if p.name == "names")
    monkeypatch.setattr(option.type, "choices", tuple(datasets))
    return datasets


def run(*arguments):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        suffix = "tsv" if name == "qrels" else "jsonl"
        (folder / f"{name}.{suffix}").write_text(content, encoding="utf-8")
    return folder


class TestFetching:
    def test_lays_questions_and_paragraphs_out_as_beir_does(self, bread, tmp_path):
        assert fetch(bread, tmp_path)
        corpus, queries, qrels = load_retrieval(tmp_path / "bread" / "en")
        assert corpus == {
            "b-p0": "Rye stands cold winters. ",
            "b-p1": "Die Hefe\u2028geht zweimal.",
            "b-p2": "Locks lift boats.",
        }
        assert queries["q2"] == "耐寒的是什么？"
        assert qrels == {"q1": {"b-p0": 1}, "q2": {"b-p0": 1}, "q3": {"b-p1": 1}}

    def test_leaves_nothing_but_the_files_that_it_names(self, bread, pairs, tmp_path):
        for dataset in (bread, pairs):
            fetch(dataset, tmp_path)
        files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert files - {".arriving/lock"} == {*bread.files, *pairs.files}

    def test_does_not_ask_for_what_is_there(self, bread, server, tmp_path):
        assert fetch(bread, tmp_path)
        assert not fetch(bread, tmp_path)
        assert len(server.asked) == 1

    def test_mends_a_file_that_was_changed(self, bread, tmp_path):
        fetch(bread, tmp_path)
        (tmp_path / "bread" / "en" / "qrels.tsv").write_text("")
        assert problems(bread, tmp_path)
        assert fetch(bread, tmp_path)
        assert not problems(bread, tmp_path)

    def test_goes_on_where_it_was_cut_off(self, bread, server, tmp_path):
        server.most_bytes = 100
        with pytest.raises(BenchError, match=f"ended after 100 of {len(RAW)} bytes"):
            fetch(bread, tmp_path)
        server.most_bytes = None
        assert fetch(bread, tmp_path)
        assert server.asked == [None, "bytes=100-"]

    def test_starts_anew_where_parts_are_not_served(self, bread, server, tmp_path):
        server.most_bytes = 100
        with pytest.raises(BenchError, match="ended after"):
            fetch(bread, tmp_path)
        server.most_bytes, server.ranges = None, False
        assert fetch(bread, tmp_path)

    def test_refuses_and_forgets_other_content(self, bread, server, tmp_path):
        server.files["bread.json"] = RAW.replace(b"winters", b"summers")
        with pytest.raises(BenchError, match=rf"not what was published[\s\S]*{bread.sha256}"):
            fetch(bread, tmp_path)
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]
        server.files["bread.json"] = RAW
        assert fetch(bread, tmp_path)

    def test_tells_a_conversion_that_went_wrong_from_a_download_that_did(self, bread, tmp_path):
        off = replace(bread, files=dict.fromkeys(bread.files, "0" * 64))
        with pytest.raises(BenchError, match="the conversion is at fault"):
            fetch(off, tmp_path)
        assert not (tmp_path / "bread").exists()

    def test_without_a_network_says_what_to_do(self, bread, tmp_path):
        with Server() as gone:
            nowhere = replace(bread, url=gone.url("bread.json"))
        with pytest.raises(BenchError, match=r"cannot fetch http[\s\S]*refused[\s\S]*--from"):
            fetch(nowhere, tmp_path)

    def test_says_that_a_file_is_gone(self, bread, server, tmp_path):
        server.files.clear()
        with pytest.raises(BenchError, match="404"):
            fetch(bread, tmp_path)


class TestCommand:
    def test_fetches_all_into_a_folder_then_finds_them(self, known, tmp_path):
        result = run(tmp_path)
        assert result.exit_code == 0, result.output
        assert result.stdout.count("fetched") == 2
        assert run(tmp_path).stdout.count("was there") == 2
        assert f"--data {tmp_path}" in result.stdout

    def test_fetches_what_is_asked_for_into_the_cache(self, known, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert run("--task", "bread-en").exit_code == 0
        assert data_folder() == tmp_path / "bge-runtime" / "data"
        assert not problems(known["bread-en"], data_folder())
        assert problems(known["pairs-en"], data_folder())
        assert load_passages("bread-en")[2] == "Locks lift boats."

    def test_verifies_a_folder_without_fetching(self, known, server, tmp_path):
        run(tmp_path)
        asked = len(server.asked)
        result = run("--from", tmp_path)
        assert result.exit_code == 0, result.output
        assert result.stdout.count("verified") == 2
        assert len(server.asked) == asked

    def test_names_what_is_wrong_in_a_folder(self, known, tmp_path):
        run(tmp_path)
        (tmp_path / "bread" / "en" / "corpus.jsonl").write_text("{}\n")
        (tmp_path / "pairs" / "pairs.csv").unlink()
        result = run("--from", tmp_path)
        assert result.exit_code == 1
        assert re.search(r"bread-en is not .* bread/en/corpus.jsonl: its sha256 is", result.stderr)
        assert "pairs-en is not as it was published: pairs/pairs.csv: No such file" in result.stderr

    def test_that_fails_says_so_in_one_line(self, known, server, tmp_path):
        server.files.clear()
        result = run(tmp_path)
        assert result.exit_code == 1
        assert result.stderr.startswith("bge-bench: cannot fetch http")
        assert result.stderr.count("\n") == 1

    def test_does_not_take_two_folders(self, tmp_path):
        assert run(tmp_path, "--from", tmp_path).exit_code == 2


class TestReading:
    corpus = '{"_id": "a", "title": "Bread", "text": "rises"}\n{"_id": "b", "text": "falls"}\n'
    queries = '{"_id": "q", "text": "does it?"}\n'
    qrels = "query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t0\n"

    def read(self, folder, **files):
        both = {"corpus": self.corpus, "queries": self.queries, "qrels": self.qrels, **files}
        return load_retrieval(write(folder, **both))

    def test_a_title_comes_before_its_text(self, tmp_path):
        corpus, queries, qrels = self.read(tmp_path)
        assert corpus == {"a": "Bread rises", "b": "falls"}
        assert queries == {"q": "does it?"}
        assert qrels == {"q": {"a": 2, "b": 0}}

    def test_grades_may_lie_where_beir_has_them(self, tmp_path):
        self.read(tmp_path)
        (tmp_path / "qrels").mkdir()
        (tmp_path / "qrels.tsv").rename(tmp_path / "qrels" / "test.tsv")
        assert load_retrieval(tmp_path).qrels == {"q": {"a": 2, "b": 0}}

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"corpus": "nothing\n"}, "line 1 of .*corpus.jsonl is not a JSON object"),
            ({"corpus": '{"_id": "a"}\n'}, "line 1 of .*corpus.jsonl is not a JSON object"),
            ({"queries": queries * 2}, "line 2 of .*queries.jsonl has the _id 'q' for a second"),
            ({"qrels": "q\ta\n"}, "line 1 of .*qrels.tsv is not a question's id"),
            ({"qrels": "q\tz\t1\n"}, "names 'q' and 'z', which are not both in"),
            ({"qrels": "q\ta\t0\n"}, "no question with a relevant passage"),
        ],
    )
    def test_what_cannot_be_meant_is_refused_by_its_line(self, tmp_path, files, message):
        with pytest.raises(BenchError, match=message):
            self.read(tmp_path, **files)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(BenchError, match=r"cannot read .*corpus\.jsonl"):
            load_retrieval(tmp_path)

    def test_pairs_keep_commas_in_quotes(self, tmp_path):
        (tmp_path / "pairs.csv").write_bytes(PAIRS)
        first, second, gold = load_sts(tmp_path / "pairs.csv")
        assert first == ["A girl sings.", "Rye, mostly"]
        assert second == ["A girl is singing.", "A boat"]
        assert gold.tolist() == [4.8, 0.2]

    @pytest.mark.parametrize(
        ("content", "message"),
        [("a,b,much\n", "row 1 of"), ("a,b\n", "row 1 of"), ("a,b,1\nc,d,1\n", "two different")],
    )
    def test_pairs_that_cannot_be_ranked_are_refused(self, tmp_path, content, message):
        (tmp_path / "pairs.csv").write_text(content)
        with pytest.raises(BenchError, match=message):
            load_sts(tmp_path / "pairs.csv")

    def test_passages_of_what_is_not_known_are_refused_with_what_is(self):
        with pytest.raises(BenchError, match="there are xquad-en"):
            load_passages("nothing")

    def test_passages_that_are_not_there_come_with_the_command_that_fetches_them(self, tmp_path):
        with pytest.raises(BenchError, match="Fetch it with `bge-bench data --task xquad-en`"):
            load_passages("xquad-en", tmp_path)


def test_everything_known_is_pinned_to_a_commit_and_hashes():
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert re.search(
            r"^https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/", dataset.url
        )
        assert all(
            re.fullmatch("[0-9a-f]{64}", h) for h in (dataset.sha256, *dataset.files.values())
        )
        assert all(Path(file).is_relative_to(dataset.path) for file in dataset.files)


@pytest.mark.parametrize("name", DATASETS)
def test_the_real_texts_have_the_hashes_known(name, shared_data):
    assert problems(DATASETS[name], shared_data / "text") == []


@pytest.mark.parametrize(
    "name", [name for name, dataset in DATASETS.items() if dataset.kind == "retrieval"]
)
def test_conversion_makes_the_very_bytes_of_the_real_texts(name, shared_data):
    dataset = DATASETS[name]
    folder = shared_data / "text" / dataset.path
    corpus, queries, qrels = load_retrieval(folder)
    asked: dict[str, list[dict[str, str]]] = {passage: [] for passage in corpus}
    for query, grades in qrels.items():
        (passage,) = grades
        asked[passage].append({"id": query, "question": queries[query]})
    paragraphs = [{"context": text, "qas": asked[passage]} for passage, text in corpus.items()]
    squad = {"data": [{"paragraphs": paragraphs}]}
    for file, content in beir_from_squad(squad, id_prefix=dataset.id_prefix).items():
        assert content == (folder / file).read_bytes()
