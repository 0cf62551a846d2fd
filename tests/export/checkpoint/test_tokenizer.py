"""A bundle's token ids are those of the checkpoint's own files, under transformers 4 and 5."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bge_export.checkpoint.tokenizer import check_token_types, load_tokenizer
from bge_export.parity_texts import PARITY_TEXTS, TOKENIZER_TEXTS
from bge_runtime import FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.encoding.tokenization import TextTokenizer
from bge_runtime.errors import ExportError
from tests.helpers.bundles import export, write_tiny_bert
from tests.helpers.decoders import export_decoder, write_tiny_decoder

TEXTS = [*PARITY_TEXTS, *TOKENIZER_TEXTS, "<s>a</s> b <mask> <tag>c [MASK]d <pad>"]
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
FRAME = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def around(tokenizer: Tokenizer, before: str, after: str) -> None:
    """Have a tokenizer put tokens before and behind a text; "" for none."""
    tokens = [token for token in (before, after) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*([before] if before else []), "$A", *([after] if after else [])],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )


def trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> str:
    tokenizer.train_from_iterator([text[:200] for text in PARITY_TEXTS], trainer)
    return tokenizer.to_str()


# Trained once, since no two trainings give the same ids.


@functools.cache
def word_pieces() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(
        tokenizer,
        trainers.WordPieceTrainer(vocab_size=900, special_tokens=BERT_TOKENS, show_progress=False),
    )


@functools.cache
def byte_pairs() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=ROBERTA_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    return trained(tokenizer, trainer)


@functools.cache
def unigrams() -> str:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=ROBERTA_TOKENS, unk_token="<unk>", show_progress=False
    )
    return trained(tokenizer, trainer)


@functools.cache
def sentence_pieces() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False),
    )


def bert(**normalizer: bool | None) -> Tokenizer:
    tokenizer = Tokenizer.from_str(word_pieces())
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    around(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def roberta(*, space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer.from_str(byte_pairs())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=space
    )
    return tokenizer


def xlm_roberta() -> Tokenizer:
    tokenizer = Tokenizer.from_str(unigrams())
    around(tokenizer, "<s>", "</s>")
    return tokenizer


def llama(before: str = "<s>", after: str = "") -> Tokenizer:
    tokenizer = Tokenizer.from_str(sentence_pieces())
    around(tokenizer, before, after)
    return tokenizer


def changed(tokenizer: Tokenizer, **parts) -> Tokenizer:
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def with_token(tokenizer: Tokenizer, token: str = "<tag>", **flags: bool) -> Tokenizer:
    tokenizer.add_tokens([AddedToken(token, **flags)])
    return tokenizer


@dataclass
class Case:
    """A checkpoint's tokenizer, and what its token ids are to be those of.

    Attributes:
        file: Its tokenizer.json.
        settings: Its tokenizer_config.json.
        right: The tokenizer that both together are; None for what the file says.
        more: Its other files.
    """

    file: Tokenizer
    settings: dict
    right: Tokenizer | None = None
    more: dict = field(default_factory=dict)


TAG = {
    "content": "<tag>", "lstrip": True, "rstrip": False, "normalized": False,
    "single_word": False, "special": True,
}  # fmt: skip


def of_class(name: str, **more) -> dict:
    frame = {} if name in {"BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"} else FRAME
    return {"tokenizer_class": name, **frame, **more}


BERT, LLAMA, PLAIN = "BertTokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"

CASES = {
    "bert": lambda: Case(bert(), of_class(BERT)),
    "bert by its type": lambda: Case(bert(), {}, None, {"config.json": {"model_type": "bert"}}),
    "bert, lowercase off": lambda: Case(
        bert(), of_class(BERT, do_lower_case=False), bert(lowercase=False)
    ),
    "bert, lowercase on": lambda: Case(
        bert(lowercase=False), of_class(BERT, do_lower_case=True), bert()
    ),
    "bert, accents kept": lambda: Case(
        bert(), of_class(BERT, strip_accents=False), bert(strip_accents=False)
    ),
    "bert, Chinese in words": lambda: Case(
        bert(), of_class(BERT, tokenize_chinese_chars=False), bert(handle_chinese_chars=False)
    ),
    "bert, normaliser of its own": lambda: Case(
        changed(
            bert(),
            normalizer=normalizers.Sequence(
                [normalizers.NFKC(), normalizers.Replace(Regex("[0-9]"), "0")]
            ),
        ),
        of_class(BERT, do_lower_case=True),
    ),
    "bert, pre-tokeniser of its own": lambda: Case(
        changed(bert(), pre_tokenizer=pre_tokenizers.WhitespaceSplit()), of_class(BERT)
    ),
    "bert, frame of its own": lambda: Case(
        changed(
            bert(),
            post_processor=processors.TemplateProcessing(
                single="[CLS] [MASK] $A [SEP] [SEP]",
                special_tokens=[("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4)],
            ),
        ),
        of_class(BERT),
    ),
    "roberta": lambda: Case(roberta(), of_class("RobertaTokenizer")),
    "roberta, prefix space on": lambda: Case(
        roberta(), of_class("RobertaTokenizer", add_prefix_space=True), roberta(space=True)
    ),
    "no class, prefix space off": lambda: Case(
        roberta(space=True), of_class(PLAIN, add_prefix_space=False), roberta()
    ),
    "no class, prefix space on": lambda: Case(
        roberta(space=True), of_class(PLAIN, add_prefix_space=True)
    ),
    "xlm-roberta": lambda: Case(xlm_roberta(), of_class("XLMRobertaTokenizer")),
    "xlm-roberta, no prefix": lambda: Case(
        changed(xlm_roberta(), pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never")),
        of_class("XLMRobertaTokenizer"),
    ),
    "llama, both ends": lambda: Case(
        llama(), of_class(LLAMA, add_bos_token=True, add_eos_token=True), llama("<s>", "</s>")
    ),
    "llama, end only": lambda: Case(
        llama(), of_class(LLAMA, add_bos_token=False, add_eos_token=True), llama("", "</s>")
    ),
    "llama, nothing": lambda: Case(
        llama("<s>", "</s>"),
        of_class(LLAMA, add_bos_token=False, add_eos_token=False),
        llama("", ""),
    ),
    "gemma, both ends": lambda: Case(
        llama(),
        of_class("GemmaTokenizer", add_bos_token=True, add_eos_token=True),
        llama("<s>", "</s>"),
    ),
    # These classes follow no such setting.
    "qwen, end by the file": lambda: Case(
        changed(
            roberta(),
            post_processor=processors.TemplateProcessing(
                single="$A </s>", special_tokens=[("</s>", 2)]
            ),
        ),
        of_class("Qwen2Tokenizer", add_bos_token=True),
    ),
    "no class, end by the file": lambda: Case(
        llama("<s>", "</s>"), of_class(PLAIN, add_eos_token=False)
    ),
    "an added token": lambda: Case(
        bert(),
        of_class(BERT, added_tokens_decoder={"900": TAG}),
        with_token(bert(), lstrip=True, special=True),
    ),
    "an added token's flags": lambda: Case(
        with_token(bert(), special=True),
        of_class(BERT, added_tokens_decoder={"900": TAG}),
        with_token(bert(), lstrip=True, special=True),
    ),
    "a token of added_tokens.json": lambda: Case(
        bert(), of_class(BERT), with_token(bert()), {"added_tokens.json": {"<tag>": 900}}
    ),
    "a token of special_tokens_map.json": lambda: Case(
        bert(),
        of_class(BERT),
        with_token(bert(), special=True),
        {"special_tokens_map.json": {"additional_special_tokens": ["<tag>"]}},
    ),
    "a token under transformers 5's name": lambda: Case(
        bert(),
        {
            "tokenizer_class": "TokenizersBackend",
            "extra_special_tokens": ["<tag>"],
            "pad_token": "[PAD]",
        },
        with_token(bert(), special=True),
    ),
    # What the files don't say is not for the class to decide.
    "bert, cased by the file": lambda: Case(bert(lowercase=False), of_class(BERT)),
    "llama, both ends by the file": lambda: Case(llama("<s>", "</s>"), of_class(LLAMA)),
    "roberta, prefix space by the file": lambda: Case(
        roberta(space=True), of_class("RobertaTokenizer")
    ),
    "roberta, mask by the file": lambda: Case(
        with_token(roberta(), "<mask>", special=True), of_class("RobertaTokenizer")
    ),
}

NOT_AS_TRANSFORMERS_4 = {
    "a token under transformers 5's name",
    "bert, cased by the file",
    "llama, both ends by the file",
    "roberta, prefix space by the file",
    "roberta, mask by the file",
}
"""Where transformers 4 has another opinion, or none."""


def write(folder: Path, case: Case) -> Path:
    folder.mkdir()
    case.file.save(str(folder / "tokenizer.json"))
    for name, document in {"tokenizer_config.json": case.settings, **case.more}.items():
        (folder / name).write_text(json.dumps(document))
    return folder


def version() -> str:
    import transformers

    return transformers.__version__


def opened(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer: Tokenizer) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]


@pytest.mark.parametrize("name", list(CASES))
def test_token_ids_are_those_of_the_files(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
):
    case = CASES[name]()
    folder = write(tmp_path / "checkpoint", case)
    tokenizer = load_tokenizer(folder, right_padding=False)
    right = ids_of(case.right or case.file)
    assert ids_of(tokenizer.backend_tokenizer) == right
    # Nothing is silent: neither another opinion of the installed transformers, nor none.
    try:
        same = opened(folder)(TEXTS)["input_ids"] == right
    except Exception:  # noqa: BLE001  # tokenizers raises bare Exception
        same = False
    told = [record.message for record in caplog.records if record.name.startswith("bge_export")]
    assert len(told) == (not same)
    assert all(f"transformers {version()} " in line for line in told)
    if version().startswith("4."):
        assert same == (name not in NOT_AS_TRANSFORMERS_4)
    # And whoever opens the bundle has them, too.
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    tokenizer.write(bundle, max_length=512, token_types=False)
    assert opened(bundle)(TEXTS)["input_ids"] == right
    runtime = TextTokenizer(bundle / "tokenizer.json")
    kept = [row for row, ids in enumerate(right) if ids]
    found = runtime.encode([TEXTS[row] for row in kept], max_length=10**6)
    assert [ids.tolist() for ids in found] == [right[row] for row in kept]
    again = load_tokenizer(bundle, right_padding=False)
    assert again.special_tokens == tokenizer.special_tokens
    assert again.additional_special_tokens == tokenizer.additional_special_tokens


def test_settings_of_a_bundle_are_those_that_transformers_4_and_5_read(tmp_path: Path):
    settings = of_class(
        LLAMA,
        add_eos_token=True,
        additional_special_tokens=["<tag>"],
        chat_template="{{ messages }}",
        clean_up_tokenization_spaces=True,
        model_max_length=4096,
    )
    folder = write(tmp_path / "checkpoint", Case(llama(), settings))
    tokenizer = load_tokenizer(folder, right_padding=False)
    tokenizer.write(tmp_path, max_length=512, token_types=False)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written.pop("added_tokens_decoder")["3"] == {**TAG, "content": "<pad>", "lstrip": False}
    assert written == {
        **FRAME,
        "additional_special_tokens": ["<tag>"],
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "padding_side": "left",
        "truncation_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert tokenizer.model_max_length == 4096
    tokenizer = opened(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token, tokenizer.padding_side) == (
        3,
        "</s>",
        "left",
    )
    assert "<tag>" in tokenizer.all_special_tokens
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


def test_without_a_tokenizer_file_transformers_converts(tmp_path: Path):
    vocabulary = sorted(bert().get_vocab(), key=bert().get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    settings = {**of_class(BERT, do_lower_case=False), "model_max_length": 64}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert ids_of(tokenizer.backend_tokenizer) == ids_of(bert(lowercase=False))
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (0, 64)
    assert tokenizer.gives_token_types


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_special_tokens": True}, r"what split_special_tokens of its .* is not known here"),
        ({"padding_side": "left"}, "pads on the left"),
        ({"truncation_side": "left"}, "truncates on the left"),
        ({"pad_token": None}, "no padding token"),
        ({"do_lower_case": "yes"}, r"tokenizer_config\.json has invalid settings"),
        ({"added_tokens_decoder": ["<tag>"]}, r"tokenizer_config\.json has invalid settings"),
        ({"tokenizer_class": "NoSuchTokenizer", "auto_map": {}}, None),
    ],
)
def test_what_no_bundle_can_follow_is_refused(tmp_path: Path, settings: dict, message: str | None):
    folder = write(tmp_path / "checkpoint", Case(bert(), of_class(BERT, **settings)))
    if message is None:  # transformers 4 does not know the class, and 5 takes the file
        if version().startswith("5."):
            pytest.skip("transformers 5 takes any class")
        message = "cannot load a tokenizer"
    with pytest.raises(ExportError, match=message):
        load_tokenizer(folder)


def test_a_text_that_is_put_in_twice_is_refused(tmp_path: Path):
    file = changed(bert(), post_processor=processors.TemplateProcessing(single="$A $A"))
    folder = write(tmp_path / "checkpoint", Case(file, of_class(BERT)))
    with pytest.raises(ExportError, match="does more to a text's tokens"):
        load_tokenizer(folder)


def test_an_end_without_a_token_for_it_is_refused(tmp_path: Path):
    settings = of_class(LLAMA, add_eos_token=True, eos_token=None)
    folder = write(tmp_path / "checkpoint", Case(llama(), settings))
    with pytest.raises(ExportError, match="sets add_eos_token, and the tokenizer has no eos_token"):
        load_tokenizer(folder, right_padding=False)


def test_merges_left_out_at_random_are_refused(tmp_path: Path):
    file = roberta()
    file.model.dropout = 0.1
    case = Case(file, {"tokenizer_class": "PreTrainedTokenizerFast", **FRAME}, file)
    with pytest.raises(ExportError, match=r"leaves out merges at random \(dropout 0\.1"):
        load_tokenizer(write(tmp_path / "checkpoint", case))


def test_padding_of_the_file_counts_where_settings_say_nothing(tmp_path: Path):
    file = bert()
    file.enable_padding(direction="left", pad_id=0, pad_token="[PAD]", length=16)
    file.enable_truncation(8)
    case = Case(file, {"tokenizer_class": "PreTrainedTokenizerFast"})
    folder = write(tmp_path / "checkpoint", case)
    with pytest.raises(ExportError, match="pads on the left"):
        load_tokenizer(folder)
    tokenizer = load_tokenizer(folder, right_padding=False)
    assert tokenizer.special_tokens == {"pad_token": "[PAD]"}
    assert ids_of(tokenizer.backend_tokenizer) == ids_of(bert())


def test_code_of_its_own_that_is_not_run_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        **FRAME,
        "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
    }
    load_tokenizer(write(tmp_path / "checkpoint", Case(roberta(), settings)))
    assert "has custom code (auto_map in its tokenizer_config.json)" in caplog.text


@pytest.mark.parametrize(
    ("single", "refused"),
    [
        ("[CLS]:0 $A:0 [SEP]:0", False),
        ("[CLS]:0 $A:1 [SEP]:1", True),
        ("[CLS]:2 $A:0 [SEP]:0", True),
        ("$A:1", True),
    ],
)
@pytest.mark.parametrize("passed_on", [True, False])
def test_token_types_other_than_0_are_refused(
    tmp_path: Path, single: str, refused: bool, passed_on: bool
):
    file = bert()
    file.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", *(["token_type_ids"] if passed_on else []), "attention_mask"]
    settings = of_class(BERT, model_input_names=names)
    tokenizer = load_tokenizer(write(tmp_path / "checkpoint", Case(file, settings)))
    if refused and passed_on:
        with pytest.raises(ExportError, match=r"token types .* all 0"):
            check_token_types(tokenizer, source="it")
    else:
        check_token_types(tokenizer, source="it")


def replace_tokenizer(folder: Path, case: Case) -> Path:
    for path in folder.glob("*token*"):
        path.unlink()
    case.file.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(case.settings))
    return folder


def test_token_types_of_a_checkpoint_are_refused(tmp_path: Path):
    file = bert()
    file.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    checkpoint = write_tiny_bert(tmp_path / "checkpoint", layers=1)
    replace_tokenizer(checkpoint, Case(file, of_class(BERT)))
    with pytest.raises(ExportError, match="token types"):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("framed", [True, False])
def test_an_encoder_without_latin_letters_or_special_tokens(tmp_path: Path, framed: bool):
    # It leaves out what it does not know, so that most texts have no tokens of their own.
    file = Tokenizer(models.BPE())
    file.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=BERT_TOKENS, show_progress=False)
    file.train_from_iterator(["图书馆的旧账本记录了每一次水位的变化"] * 3, trainer)
    if framed:
        around(file, "[CLS]", "[SEP]")
    checkpoint = write_tiny_bert(tmp_path / "checkpoint", layers=1)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    replace_tokenizer(checkpoint, Case(file, settings))
    bundle = export(checkpoint, tmp_path / "bundle", targets=("cpu",))
    reference = Bundle.open(bundle).reference()
    assert len({ids.tobytes() for ids in reference.token_ids}) == len(reference.texts) > 2
    assert all(len(ids) for ids in reference.token_ids)
    model = FlagModel(str(bundle), use_fp16=False)
    assert model.encode(["图书馆"]).shape == (1, 48)


def test_a_decoder_ends_as_its_settings_say(tmp_path: Path):
    checkpoint = write_tiny_decoder(tmp_path / "checkpoint")
    settings = of_class(LLAMA, add_bos_token=True, add_eos_token=True)
    replace_tokenizer(checkpoint, Case(llama(), settings))
    bundle = export_decoder(checkpoint, tmp_path / "bundle", model_class="decoder-only-base")
    assert all(ids[-1] == 2 for ids in Bundle.open(bundle).reference().token_ids[:4])
    tokenizer = opened(bundle)
    assert tokenizer("a heat pump")["input_ids"][-1] == 2


def test_warnings_of_an_export_are_told(capsys: pytest.CaptureFixture):
    from bge_export.cli import _print_warnings

    logger = logging.getLogger("bge_export.checkpoint.tokenizer")
    with _print_warnings():
        logger.warning("of %s", "two")
    assert capsys.readouterr().err == "bge-export: warning: of two\n"
