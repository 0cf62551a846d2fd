"""What transformers 4.57 changes in a ``tokenizer.json``, by class of tokenizer.

To add a class, add a row to `CLASSES`, and its models' ``model_type`` to `CLASS_OF_TYPE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from bge_export.checkpoint.tokenizer.tokenizer import SETTINGS_FILE, read_state
from bge_runtime.encoding import special_tokens_around
from bge_runtime.errors import BundleError, ExportError

Change = Callable[[Tokenizer, Mapping[str, Any], Mapping[str, str], Path], None]
"""Applies settings to a tokenizer. Arguments: tokenizer, settings, special tokens, checkpoint."""


@dataclass(frozen=True)
class TokenizerClass:
    """A class of fast tokenizers in transformers 4.57.

    Attributes:
        special_tokens: Default special tokens by role.
        changes: Changes that settings make to ``tokenizer.json``.
        gives_token_types: Whether its ``model_input_names`` include token types.
        padding_side: Default padding side.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    gives_token_types: bool = False
    padding_side: str = "right"


def _change_prefix_space(
    tokenizer: Tokenizer, settings: Mapping[str, Any], _names: Mapping[str, str], _folder: Path
) -> None:
    """Apply ``add_prefix_space`` to a ByteLevel pre-tokenizer, as PreTrainedTokenizerFast does."""
    state = read_state(tokenizer.pre_tokenizer)
    asked = settings.get("add_prefix_space", state.get("add_prefix_space"))
    if state.get("add_prefix_space", asked) != asked and state.pop("type") == "ByteLevel":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{**state, "add_prefix_space": asked})


def _change_bert_normalizer(
    tokenizer: Tokenizer, settings: Mapping[str, Any], _names: Mapping[str, str], _folder: Path
) -> None:
    state = read_state(tokenizer.normalizer)
    if state.pop("type", None) != "BertNormalizer":
        return
    for key, part in (
        ("do_lower_case", "lowercase"),
        ("strip_accents", "strip_accents"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
    ):
        if key in settings:
            state[part] = settings[key]
    tokenizer.normalizer = normalizers.BertNormalizer(**state)


def _change_begin_and_end(
    tokenizer: Tokenizer, settings: Mapping[str, Any], names: Mapping[str, str], folder: Path
) -> None:
    """Add or remove the begin and end tokens, as LlamaTokenizerFast does."""
    if not settings.keys() & {"add_bos_token", "add_eos_token"}:
        return
    try:
        around = special_tokens_around(tokenizer)
    except BundleError:  # it is replaced below
        around = [], []
    frame: list[list[tuple[str, int]]] = []
    for own, key, role in zip(
        around, ("add_bos_token", "add_eos_token"), ("bos_token", "eos_token"), strict=True
    ):
        token = names.get(role)
        number = None if token is None else tokenizer.token_to_id(token)
        if not settings.get(key, number in own):
            frame.append([])
        elif token is None or number is None:
            raise ExportError(
                f"{folder / SETTINGS_FILE} sets {key}, and the tokenizer has no {role}; name it "
                f"there, or set {key} to false"
            )
        else:
            frame.append([(token, number)])
    before, after = frame
    if around != ([number for _, number in before], [number for _, number in after]):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*(token for token, _ in before), "$A", *(token for token, _ in after)],
            special_tokens=[*before, *after],
        )


def _change_llama_space(
    tokenizer: Tokenizer, settings: Mapping[str, Any], _names: Mapping[str, str], folder: Path
) -> None:
    """Add or remove the space before a text, as LlamaTokenizerFast does.

    With ``add_prefix_space`` transformers rebuilds the tokenizer from ``tokenizer.model``. The
    result differs from the file only in this.
    """
    asked = settings.get("add_prefix_space")
    if asked is None or not (folder / "tokenizer.model").is_file():
        return
    legacy = settings.get("legacy")
    if legacy is None or legacy:
        prepend = [normalizers.Prepend("▁")] if asked else []
        tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    else:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme="first" if asked else "never", split=False
        )


_BERT = TokenizerClass(
    {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    (_change_prefix_space, _change_bert_normalizer),
    gives_token_types=True,
)  # fmt: skip


_ROBERTA = TokenizerClass(
    {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
        "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>",
    },
    (_change_prefix_space,),
)  # fmt: skip


CLASSES = {
    "PreTrainedTokenizer": TokenizerClass(changes=(_change_prefix_space,), gives_token_types=True),
    # The class of transformers 5, which leaves the file as it is.
    "TokenizersBackend": TokenizerClass(gives_token_types=True),
    "BertTokenizer": _BERT,
    "ConvBertTokenizer": _BERT,
    "DistilBertTokenizer": TokenizerClass(_BERT.special_tokens, _BERT.changes),
    "ElectraTokenizer": _BERT,
    "MobileBertTokenizer": _BERT,
    "RobertaTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _ROBERTA,
    "LlamaTokenizer": TokenizerClass(
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        (_change_prefix_space, _change_llama_space, _change_begin_and_end),
        padding_side="left",
    ),
    "GemmaTokenizer": TokenizerClass(
        {
            "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
        (_change_prefix_space, _change_begin_and_end),
        padding_side="left",
    ),
    "Qwen2Tokenizer": TokenizerClass(
        {
            "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
        (_change_prefix_space,),
    ),
}  # fmt: skip
"""Known classes, by name without ``Fast``. With another class, a file is exported only if its token
ids are those of the installed transformers."""


CLASS_OF_TYPE = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "mistral": "LlamaTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}
"""Default class, by ``model_type``."""
