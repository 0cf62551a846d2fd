from itertools import pairwise

import pytest

from bge_bench.datasets.corpus import lengths_words, paragraphs, read_texts, spread_sample
from bge_bench.errors import BenchError


def test_the_corpus_is_the_same_every_time():
    assert paragraphs(40) == paragraphs(40)


def test_the_default_corpus_has_the_stated_lengths_in_mixed_order():
    words = [len(text.split()) for text in paragraphs()]
    assert len(words) == 200
    assert sorted(words) == lengths_words(200)
    assert (min(words), max(words)) == (4, 500)
    assert words != sorted(words)


def test_lengths_grow_by_one_factor():
    lengths = lengths_words(10)
    assert [round(b / a, 1) for a, b in pairwise(lengths[4:])] == [1.7] * 5


def test_paragraphs_differ():
    texts = paragraphs()
    assert len(set(texts)) == len(texts)


def test_a_sample_is_spread_over_the_whole():
    texts = [str(number) for number in range(10)]
    assert spread_sample(texts, 3) == ["0", "3", "6"]
    assert spread_sample(texts, 99) == texts


def test_texts_are_read_one_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("eins\n\nzwei\u2028still zwei\n", encoding="utf-8")
    assert read_texts(path) == ["eins", "zwei\u2028still zwei"]


@pytest.mark.parametrize("content", [b"", b"one\none\n", b"\xff\xfe"])
def test_a_file_that_gives_no_two_texts_is_refused(tmp_path, content):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"texts\.txt"):
        read_texts(path)
