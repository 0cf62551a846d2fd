"""Our token ids are transformers' token ids."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.encoding import tokenization
from bge_runtime.encoding.tokenization import TextTokenizer
from bge_runtime.errors import BundleError
from tests.helpers.runtime import PROPERTY, TEXTS

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

HARD_TEXTS = [
    *TEXTS,
    "[SEP]",
    "[CLS][SEP][PAD]",
    "no[MASK]space",
    "[mask] [Sep] </s> <s> <|endoftext|>",
    "\x00 \x01 control \x7f",
    "\ufeff\u202eright to left\u202c",
    "e\u0301 e\u0301\u0323 \u1e69",
    "１２３ ﬁ ℃ ½",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧‍👦 🇩🇪",
    "اَلْعَرَبِيَّةُ हिन्दी ไทย 한국어 ひらがな",
    "don't won't it's $1,000.00 a@b.c http://x.y/z?q=1#f",
]


def transformers_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def assert_same_ids(ours, theirs, texts, max_length):
    expected = theirs(texts, truncation=True, max_length=max_length)["input_ids"]
    found = ours.encode(texts, max_length=max_length)
    assert [ids.tolist() for ids in found] == expected
    assert all(ids.dtype == "int64" for ids in found)


@pytest.fixture(scope="module", params=["tiny", "minilm"])
def both(request, tiny_checkpoint, minilm_checkpoint):
    """Our tokenizer and transformers', of one folder: one made here, one published."""
    folder = tiny_checkpoint if request.param == "tiny" else minilm_checkpoint
    return TextTokenizer(folder / "tokenizer.json"), transformers_tokenizer(folder)


@pytest.mark.parametrize("max_length", [2, 3, 8, 512])
def test_ids_equal_transformers(both, max_length):
    assert_same_ids(*both, HARD_TEXTS, max_length)


@PROPERTY
@given(st.lists(st.text(), min_size=1, max_size=5), st.sampled_from([2, 3, 8, 512]))
def test_ids_of_any_text_equal_transformers(both, texts, max_length):
    assert_same_ids(*both, texts, max_length)


def test_ids_of_100_000_words_equal_transformers(both):
    texts = ["many words of different lengths " * 20_000, "short"]
    assert_same_ids(*both, texts, 512)


@PROPERTY
@given(st.lists(st.text(max_size=6), max_size=9), st.integers(1, 12))
def test_texts_are_tokenised_few_characters_at_once(both, texts, most):
    # What `tokenizers` answers takes 130 bytes a token, and was the most that a window took.
    ours, _ = both
    expected = [ids.tolist() for ids in ours.encode(texts, max_length=512)]
    given_at_once = []

    class Watched:
        def encode_batch_fast(self, some, **options):
            given_at_once.append(some)
            return ours.tokenizer.encode_batch_fast(some, **options)

    watched = copy.copy(ours)
    watched.tokenizer = Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_CHARACTERS_AT_ONCE", most)
        patch.setattr(tokenization, "_FEW_CHARACTERS", -1)
        assert [ids.tolist() for ids in watched.encode(texts, max_length=512)] == expected
    assert [text for some in given_at_once for text in some] == texts
    assert all(len(some) == 1 or len("".join(some)) <= most for some in given_at_once)


def test_a_bad_text_far_behind_is_named_by_its_place(both, monkeypatch):
    monkeypatch.setattr(tokenization, "_CHARACTERS_AT_ONCE", 4)
    with pytest.raises(ValueError, match="text 12 is not valid Unicode"):
        both[0].encode(["good", "good", "b\ud800d"], max_length=8, first=10)


def test_no_texts_give_no_ids(both):
    assert both[0].encode([], max_length=8) == []


@pytest.mark.parametrize("kind", ["fixed", "longest"])
def test_padding_and_truncation_in_the_file_are_ignored(tiny_checkpoint, tmp_path, kind):
    # Published files carry both: all-MiniLM-L6-v2's pads every text to 128 tokens.
    for name in FILES:
        shutil.copy(tiny_checkpoint / name, tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    data["truncation"] = {
        "direction": "Right",
        "max_length": 6,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    data["padding"] = {
        "strategy": {"Fixed": 16} if kind == "fixed" else "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": 8,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    path.write_text(json.dumps(data), "utf-8")
    # The edit is of a kind that a plain load does obey.
    from tokenizers import Tokenizer

    assert len(Tokenizer.from_file(str(path)).encode("a " * 50).ids) in (8, 16)
    theirs = transformers_tokenizer(tmp_path)
    assert_same_ids(TextTokenizer(path), theirs, HARD_TEXTS, 512)


@pytest.mark.parametrize("max_length", [0, 1])
def test_a_length_without_room_for_special_tokens_is_an_error(both, max_length):
    with pytest.raises(ValueError, match=f"max_length={max_length} leaves no room for the 2"):
        both[0].encode(["a"], max_length=max_length)


@pytest.mark.parametrize(
    ("text", "found"),
    [("a\ud800", "character 1 .* U\\+D800"), ("\udfff", "character 0 .* U\\+DFFF")],
)
def test_a_lone_surrogate_is_an_error_that_names_text_and_character(both, text, found):
    with pytest.raises(ValueError, match=f"text 2 is not valid Unicode: {found}"):
        both[0].encode(["fine", "fine", text, "fine"], max_length=8)


def test_the_repair_that_the_surrogate_error_proposes_works(both):
    repaired = "a\ud800".encode("utf-8", "replace").decode()
    assert_same_ids(*both, [repaired], 8)


@pytest.mark.parametrize("content", ["", "{}", "not JSON"])
def test_a_damaged_file_is_a_bundle_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match="cannot load the tokenizer"):
        TextTokenizer(path)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A tokenizer that puts nothing around a text, as some decoders'."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    tokenizer.save(str(path))
    return TextTokenizer(path)


def test_a_tokenizer_may_put_nothing_around_a_text(bare):
    assert bare.special_tokens == 0
    assert [ids.tolist() for ids in bare.encode(["a b", "c"], max_length=1)] == [[0], [2]]


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_text_without_tokens_is_an_error_that_names_it(bare, text):
    with pytest.raises(ValueError, match=r"text 7 .* has no tokens"):
        bare.encode(["a", text], max_length=8, first=6)


@PROPERTY
@given(st.lists(st.text(), min_size=1, max_size=5), st.integers(0, 8))
def test_bare_ids_and_their_text_equal_transformers(both, texts, max_length):
    ours, theirs = both
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    found = ours.encode_bare(texts, max_length=max_length)
    assert [ids.tolist() for ids in found] == [ids[:max_length] for ids in expected]
    decoded = [
        theirs.decode(ids[:max_length], clean_up_tokenization_spaces=False) for ids in expected
    ]
    assert ours.decode_batch(found) == decoded
    (start,) = ours.encode([texts[0]], max_length=10**6)
    assert ours.encode_start(texts[0]).tolist() == start[:-1].tolist()


def saved(tmp_path_factory, tokenizer) -> TextTokenizer:
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    tokenizer.save(str(path))
    return TextTokenizer(path)


def template(single, *tokens):
    from tokenizers import processors

    special = [(token, 90 + number) for number, token in enumerate(tokens)]
    return processors.TemplateProcessing(single=single, special_tokens=special)


def sequence(*parts):
    from tokenizers import processors

    return processors.Sequence([processors.ByteLevel(), *parts])


def roberta():
    from tokenizers import processors

    return processors.RobertaProcessing(("</s>", 2), ("<s>", 0))


def bert():
    from tokenizers import processors

    return processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))


POST_PROCESSORS = {
    "none": (lambda: None, ([], [])),
    "bert": (bert, ([101], [102])),
    "roberta": (roberta, ([0], [2])),
    "bytes": (sequence, ([], [])),
    "nothing": (partial(template, "$A"), ([], [])),
    "before": (partial(template, "<s> $A", "<s>"), ([90], [])),
    "behind": (partial(template, "$A </s>", "</s>"), ([], [90])),
    "several": (partial(template, "<s> <q> $A </s> </s>", "<s>", "<q>", "</s>"),
                ([90, 91], [92, 92])),
    "types": (partial(template, "<s>:2 $A:1 </s>:1", "<s>", "</s>"), ([90], [91])),
    "one in another": (lambda: sequence(roberta(), template("$A <e>", "<e>")), ([0], [2, 90])),
    "twice": (partial(template, "<s> $A <m> $A", "<s>", "<m>"), None),
    "twice in a row": (partial(template, "$A $A"), None),
    "left out": (partial(template, "<s>", "<s>"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", list(POST_PROCESSORS))
@pytest.mark.parametrize("word", ["a", "图"])
def test_special_tokens_are_found_whatever_the_vocabulary(tmp_path_factory, name, word):
    from tokenizers import Tokenizer, models, pre_tokenizers

    make, expected = POST_PROCESSORS[name]
    # As some BPE models it leaves out what it does not know.
    tokenizer = Tokenizer(models.BPE({word: 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if (processor := make()) is not None:
        tokenizer.post_processor = processor
    if expected is None:
        with pytest.raises(BundleError, match="does more to a text's tokens"):
            saved(tmp_path_factory, tokenizer)
        return
    ours = saved(tmp_path_factory, tokenizer)
    before, after = expected
    assert ours.special_tokens == len(before) + len(after)
    for text in (word, f"{word} {word}", f"{word} unknown"):
        assert ours.encode([text], max_length=9)[0].tolist() == tokenizer.encode(text).ids
    if before or after:
        assert ours.encode([""], max_length=9)[0].tolist() == [*before, *after]
    assert ours.encode_start(word).tolist() == [*before, 0]


def pieces(kind):
    """A tokenizer of a kind, whose vocabulary is letters and some pairs of them."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    single = [*"abcAB1.▁Ġé好", "[", "]", "<", ">"]
    vocabulary = [*single, "ab", "bc", "▁a", "▁ab", "Ġa", "b▁"]
    if kind == "unigram":
        scores = [(token, -1.0 - number / 9) for number, token in enumerate(["?", *vocabulary])]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
    else:
        ids = {token: number for number, token in enumerate(["?", *vocabulary])}
        merges = [("b", "▁"), ("a", "b"), ("b", "c"), ("▁", "a"), ("▁", "ab"), ("Ġ", "a")]
        tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="?", fuse_unk=True))
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in {"whole", "first"}:  # a text is one word
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    if kind == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if kind == "words with spaces":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_tokens([AddedToken("a b")])
    else:
        tokenizer.add_tokens([AddedToken("<m>", lstrip=True, rstrip=True), AddedToken("abc")])
    return tokenizer


CUT = {
    "unigram": True,
    "bytes": True,
    "whole": False,
    "first": False,
    "words with spaces": False,
}
"""Whether a text's first tokens are known by its beginning."""


@pytest.fixture(scope="module", params=["tiny", "minilm", *CUT])
def cutting(request, tmp_path_factory, tiny_checkpoint, minilm_checkpoint):
    """A tokenizer, and whether it is one whose texts are cut."""
    if request.param in CUT:
        return saved(tmp_path_factory, pieces(request.param)), CUT[request.param]
    folder = tiny_checkpoint if request.param == "tiny" else minilm_checkpoint
    return TextTokenizer(folder / "tokenizer.json"), True


PARTS = [
    "a b",
    "b a",
    "ab",
    "c",
    "A",
    "1",
    "é",
    "好",
    "\u0301",
    ".",
    "\n",
    "<m>",
    "abc",
    "[SEP]",
    "  ",
]


@PROPERTY
@given(
    st.lists(st.sampled_from([*PARTS, *[" ", "b a b"] * 8]), max_size=40).map("".join),
    st.integers(0, 12),
    st.integers(1, 4),
)
def test_a_long_text_has_the_tokens_of_its_beginning(cutting, text, most, characters):
    ours, cuts = cutting
    expected = [ids.tolist() for ids in ours.encode_bare(["a", text, "b"], max_length=most)]
    assert ours._is_local == cuts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_LONG_TEXT", 0)
        patch.setattr(tokenization, "_CHARACTERS_AT_ONCE", 1)
        patch.setattr(tokenization, "_CHARACTERS_A_TOKEN", characters)
        found = ours.encode_bare(["a", text, "b"], max_length=most)
    assert [ids.tolist() for ids in found] == expected


def test_of_20_megabytes_the_beginning_is_tokenised(both):
    ours, theirs = both
    text = "many words of different lengths " * 625_000
    taken = []

    class Watched:
        def encode_batch_fast(self, some, **options):
            taken.extend(map(len, some))
            return ours.tokenizer.encode_batch_fast(some, **options)

    watched = copy.copy(ours)
    watched._is_local = ours._is_local
    watched.tokenizer = Watched()
    (ids,) = watched.encode([text], max_length=512)
    assert sum(taken) < 20_000
    assert ids.tolist() == theirs(text[:20_000], truncation=True, max_length=512)["input_ids"]
    with pytest.raises(ValueError, match="text 3 is not valid Unicode: character 20000000"):
        watched.encode([text + "\ud800"], max_length=512, first=3)
