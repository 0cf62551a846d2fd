"""Long texts are cut into chunks that the model reads completely."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bge_runtime.bulk import chunks as module
from bge_runtime.bulk.chunks import Chunk, check_chunking, split_texts
from bge_runtime.encoding import TextTokenizer
from tests.helpers.runtime import PROPERTY, TEXTS

PARAGRAPH = (
    "Heat pumps move warmth from a cold place to a warm one. They don't burn anything, so that "
    "one kWh gives three or four. 熱泵將熱量從寒冷的地方轉移到溫暖的地方。 "
    "Größe überträgt 👩‍👩‍👧 e\u0301. "
)

HOSTILE = st.text(
    st.one_of(
        st.sampled_from("ab .,\n\t-'"),
        st.sampled_from("é熱한ไ\u0301\u200d\ufe0f👩👍🏽ﷺﬁ\u00a0\u3000\u200b\x00"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=120,
)


def train_byte_level(path: Path, *, prefix_space: bool) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
    )
    tokenizer.train_from_iterator([PARAGRAPH], trainer)
    tokenizer.save(str(path))


def train_without_words(path: Path) -> None:
    """Write a tokenizer as Mistral's: a whole text is one word, with a mark for each space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    tokenizer.decoder = decoders.ByteFallback()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
    )
    tokenizer.train_from_iterator(PARAGRAPH.replace(".", ".\n").splitlines(), trainer)
    tokenizer.save(str(path))


@pytest.fixture(
    scope="module", params=["wordpiece", "unigram", "byte-level", "byte-level-prefix", "one-word"]
)
def tokenizer(request, tmp_path_factory, tiny_checkpoint):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    if request.param == "wordpiece":
        path = tiny_checkpoint / "tokenizer.json"
    elif request.param == "unigram":
        path = request.getfixturevalue("shared_data") / "tokenizers/xlm-roberta/tokenizer.json"
        if not path.exists():
            pytest.skip("XLM-RoBERTa's tokenizer is not here")
    elif request.param == "one-word":
        train_without_words(path)
    else:
        train_byte_level(path, prefix_space=request.param.endswith("prefix"))
    return TextTokenizer(path)


def tokens(tokenizer, text):
    return tokenizer.count(text) + tokenizer.special_tokens


def assert_right(tokenizer, text, chunks, chunk_tokens):
    """Check what holds for the chunks of any text."""
    assert all(0 <= start <= end <= len(text) for start, end in chunks)
    for start, end in chunks:
        assert tokens(tokenizer, text[start:end]) <= chunk_tokens or end - start <= 1
    covered = set().union(*(range(start, end) for start, end in chunks))
    assert {place for place, each in enumerate(text) if not each.isspace()} <= covered
    # Each chunk begins and ends behind the one before.
    assert [each.start for each in chunks] == sorted({each.start for each in chunks})
    assert [each.end for each in chunks] == sorted({each.end for each in chunks})
    if tokens(tokenizer, text) <= chunk_tokens:
        assert chunks == [Chunk(0, len(text))]


@PROPERTY
@given(HOSTILE, st.integers(1, 30), st.data())
def test_chunks_fit_and_cover_every_text(tokenizer, text, room, data):
    chunk_tokens = room + tokenizer.special_tokens
    overlap = data.draw(st.integers(0, room - 1))
    (chunks,) = split_texts(tokenizer, [text], chunk_tokens=chunk_tokens, overlap=overlap)
    assert_right(tokenizer, text, chunks, chunk_tokens)


@PROPERTY
@given(st.lists(HOSTILE, max_size=4), st.integers(4, 12), st.integers(0, 3), st.integers(1, 9))
def test_chunks_do_not_depend_on_how_much_is_tokenized_at_once(
    tokenizer, texts, room, overlap, characters
):
    # Far from a segment's end the tokens are those of the whole text.
    chunk_tokens = room + tokenizer.special_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SEGMENT_CHARACTERS", characters)
        patch.setattr(module, "_CHARACTERS_A_TOKEN", 1)
        found = split_texts(tokenizer, texts, chunk_tokens=chunk_tokens, overlap=overlap)
    for text, chunks in zip(texts, found, strict=True):
        if tokens(tokenizer, text) > chunk_tokens:
            assert_right(tokenizer, text, chunks, chunk_tokens)


@pytest.mark.parametrize(("chunk_tokens", "overlap"), [(16, 0), (64, 16), (256, 100)])
def test_prose_is_cut_at_white_space_into_chunks_that_are_nearly_full(
    tokenizer, chunk_tokens, overlap
):
    text = "a text of words that a pump may have in it, " * 100
    (chunks,) = split_texts(tokenizer, [text], chunk_tokens=chunk_tokens, overlap=overlap)
    assert_right(tokenizer, text, chunks, chunk_tokens)
    for start, end in chunks:
        assert not start or text[start - 1] == " "
        assert end == len(text.rstrip()) or text[end] == " "
        assert text[start:end] == text[start:end].strip()
    for start, end in chunks[:-1]:
        assert tokens(tokenizer, text[start:end]) >= 0.6 * chunk_tokens


def test_consecutive_chunks_share_the_tokens_that_were_asked_for(tokenizer):
    text = PARAGRAPH * 20
    (chunks,) = split_texts(tokenizer, [text], chunk_tokens=128, overlap=32)
    shared = [
        tokenizer.count(text[following.start : chunk.end]) for chunk, following in pairwise(chunks)
    ]
    # At least half of them, since a word begins there; a piece by itself may have two more.
    assert all(14 <= each <= 34 for each in shared), shared
    (chunks,) = split_texts(tokenizer, [text], chunk_tokens=128)
    assert all(a.end <= b.start for a, b in pairwise(chunks))


def test_usual_texts_are_cut_right(tokenizer):
    for chunk_tokens, overlap in ((8, 0), (8, 3), (40, 20)):
        found = split_texts(tokenizer, TEXTS, chunk_tokens=chunk_tokens, overlap=overlap)
        for text, chunks in zip(TEXTS, found, strict=True):
            assert_right(tokenizer, text, chunks, chunk_tokens)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u200b"])
def test_a_text_without_tokens_is_one_chunk(tokenizer, text):
    chunk_tokens = 8 + tokenizer.special_tokens
    assert split_texts(tokenizer, [text], chunk_tokens=chunk_tokens) == [[Chunk(0, len(text))]]


def test_much_white_space_is_one_chunk(tokenizer):
    (chunks,) = split_texts(tokenizer, [" " * 200_000], chunk_tokens=16)
    assert len(chunks) == 1


def test_a_huge_word_is_cut_anyhow(tokenizer):
    word = "ab" * 2000
    (chunks,) = split_texts(tokenizer, [f"one {word} two"], chunk_tokens=32)
    assert_right(tokenizer, f"one {word} two", chunks, 32)


def test_a_family_of_emoji_and_an_accent_stay_whole(tokenizer):
    text = "👩\u200d👩\u200d👧e\u0301👍🏽" * 100
    (chunks,) = split_texts(tokenizer, [text], chunk_tokens=64)
    assert_right(tokenizer, text, chunks, 64)
    for start, _ in chunks[1:]:
        assert text[start] in "👩e👍", text[start - 2 : start + 2]
        assert text[start - 1] != "\u200d"


def test_a_long_text_is_read_in_segments(tokenizer):
    text = PARAGRAPH * 1200
    assert len(text) > 3 * module._SEGMENT_CHARACTERS
    (chunks,) = split_texts(tokenizer, [text], chunk_tokens=512, overlap=50)
    assert_right(tokenizer, text, chunks, 512)


def test_the_work_for_a_long_text_grows_with_its_length(tokenizer, monkeypatch):
    """Of texts that are hard to cut, too: no character is tokenized more than a few times."""
    work = 0

    def watch(name):
        original = getattr(TextTokenizer, name)

        def watched(self, texts, **options):
            nonlocal work
            work += len(texts) if isinstance(texts, str) else sum(map(len, texts))
            return original(self, texts, **options)

        monkeypatch.setattr(TextTokenizer, name, watched)

    watch("count")
    watch("locate")
    size = 3 * module._SEGMENT_CHARACTERS
    gap = " " * module._SEGMENT_CHARACTERS
    for text in (
        PARAGRAPH * (size // len(PARAGRAPH)),
        "a" * size,
        "a." * (size // 2),
        "熱" * size,
        "ﷺ" * (size // 30),
        "\n" * size,
        ("x " * 400 + gap) * 3,
    ):
        work = 0
        split_texts(tokenizer, [text], chunk_tokens=256, overlap=0)
        assert work <= 6 * len(text), text[:9]


def test_a_bad_text_is_named_by_its_place(tokenizer):
    for bad in ("b\ud800d", "good " * 50_000 + "\ud800"):
        with pytest.raises(ValueError, match="text 12 is not valid Unicode"):
            split_texts(tokenizer, ["good", "good", bad], chunk_tokens=8, first=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "chunk_tokens must be a whole number of at least 1"),
        ((64, -1), "overlap=-1 is negative"),
        ((64, 62), "chunk_tokens=64 leaves 62 tokens beside the 2 special ones, and overlap=62"),
        ((2, 0), "leaves 0 tokens"),
        ((513, 0), "chunk_tokens=513 is more than the 512 tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_chunking(*arguments, special_tokens=2, max_length=512)
    check_chunking(512, 509, special_tokens=2, max_length=512)
