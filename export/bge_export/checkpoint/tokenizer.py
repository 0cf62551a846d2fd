"""A checkpoint's tokenizer, as its own files say, whichever transformers is installed.

transformers 4.57, with which FlagEmbedding runs, reads ``tokenizer.json`` and lets settings of
``tokenizer_config.json`` change parts of it. Which settings depends on the class; `_CLASSES` has
them. transformers 5 takes the vocabulary out of the file and builds the rest by class, so that what
else the file says can be lost. Here the file is read as 4.57 does, and what the installed
transformers makes of it is compared, and told where it differs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bge_export.parity_texts import PARITY_TEXTS, TOKENIZER_TEXTS
from bge_export.quiet import first_lines, quiet
from bge_runtime.bundle import TOKENIZER_FILE
from bge_runtime.encoding import special_tokens_around
from bge_runtime.errors import BundleError, ExportError
from bge_runtime.system import check_not_pointer, read_json

logger = logging.getLogger(__name__)

SETTINGS_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"

_ROLES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""What a special token may be for, in the order in which transformers adds those that are new."""

_UNKNOWN_SETTINGS = ("split_special_tokens", "from_slow", "fix_mistral_regex")
"""Settings of transformers 4.57 that may change token ids, and are followed nowhere here."""

_MOST_SPECIAL_TOKENS = 64
"""Of a tokenizer, that are looked for within texts; some have thousands that are reserved."""

_NO_LENGTH = int(1e30)
"""transformers' model_max_length where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class CheckpointTokenizer:
    """A tokenizer that neither cuts nor pads. Its attributes are named as transformers' are.

    Attributes:
        backend_tokenizer: The tokenizer itself.
        special_tokens: Special tokens by what they are for, such as ``"pad_token"``.
        additional_special_tokens: Those that are for nothing in particular.
        padding_side: ``"right"`` or ``"left"``.
        truncation_side: The same.
        model_max_length: Where transformers cuts a text, if told to cut.
        clean_up_tokenization_spaces: Whether it removes spaces when it decodes.
        gives_token_types: Whether transformers passes its token types to the model.
    """

    backend_tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    additional_special_tokens: tuple[str, ...] = ()
    padding_side: str = "right"
    truncation_side: str = "right"
    model_max_length: int = _NO_LENGTH
    clean_up_tokenization_spaces: bool = False
    gives_token_types: bool = True

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token, added ones included."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self.token_id("pad_token")

    def encode(self, texts: Sequence[str], *, max_length: int) -> list[list[int]]:
        """Tokenise texts as ``tokenizers`` itself does, special tokens and cut included."""
        self.backend_tokenizer.enable_truncation(max_length)
        try:
            encodings = self.backend_tokenizer.encode_batch(list(texts))
        finally:
            self.backend_tokenizer.no_truncation()
        return [encoding.ids for encoding in encodings]

    def token_id(self, role: str) -> int:
        """Return the id of the special token for something, such as ``"pad_token"``."""
        return int(self.backend_tokenizer.token_to_id(self.special_tokens[role]))

    def write(self, folder: Path, *, max_length: int, token_types: bool) -> None:
        """Write files from which every transformers since 4.57 makes the same token ids.

        Args:
            folder: Where.
            max_length: Where other tools are to cut a text.
            token_types: Whether the model takes token types.
        """
        self.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
        added = self.backend_tokenizer.get_added_tokens_decoder()
        fields = {number: _fields(token) for number, token in sorted(added.items())}
        names: dict[str, Any] = dict(self.special_tokens)
        if self.additional_special_tokens:
            names["additional_special_tokens"] = list(self.additional_special_tokens)
        inputs = ("input_ids", "token_type_ids", "attention_mask")
        settings = {
            "added_tokens_decoder": fields,
            **names,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_input_names": [name for name in inputs if token_types or "type" not in name],
            "model_max_length": max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            # The class that leaves the file as it is, by the name that transformers 4 and 5 know.
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        spaced = _state(self.backend_tokenizer.pre_tokenizer).get("add_prefix_space")
        if spaced is not None:  # else transformers 4 takes it away
            settings["add_prefix_space"] = spaced
        # fastembed adds those of this file again, as they are described there.
        by_content = {
            token["content"]: {key: value for key, value in token.items() if key != "special"}
            for token in fields.values()
        }
        described = {
            role: by_content.get(token, token) for role, token in self.special_tokens.items()
        }
        for name, document in (
            (SETTINGS_FILE, settings),
            (SPECIAL_TOKENS_FILE, {**names, **described}),
        ):
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")


def load_tokenizer(
    folder: Path, *, trust_remote_code: bool = False, right_padding: bool = True
) -> CheckpointTokenizer:
    """Load a checkpoint's tokenizer.

    Where it has a ``tokenizer.json``, token ids are those of that file, with what its settings
    change explicitly. A warning is logged where the installed transformers makes others. Without
    that file, or with code of its own that is trusted, they are transformers'.

    Args:
        folder: The checkpoint.
        trust_remote_code: Run code from the checkpoint.
        right_padding: Refuse one that pads on the left. For a decoder that makes no
            difference: its last token is found on either side.

    Raises:
        ExportError: If there is none, or it cannot be what the runtime reads.
    """
    settings = _read(folder / SETTINGS_FILE)
    own_code = _has_own_code(folder, settings)
    if not (folder / TOKENIZER_FILE).is_file() or (own_code and trust_remote_code):
        theirs = _load_with_transformers(folder, trust_remote_code=trust_remote_code)
        tokenizer = _from_transformers(theirs)
    else:
        if own_code:
            logger.warning(
                "the tokenizer of %s has code of its own (auto_map in its %s), which was not run; "
                "the bundle's token ids are those of its %s",
                folder, SETTINGS_FILE, TOKENIZER_FILE,
            )  # fmt: skip
        tokenizer = _from_files(folder, settings)
    _check(tokenizer, folder, right_padding=right_padding)
    return tokenizer


def check_vocabulary(tokenizer: CheckpointTokenizer, rows: int, *, source: str) -> None:
    """Check that each token has an embedding; texts that prove a graph may hold none that lacks it.

    Raises:
        ExportError: If one has none.
    """
    beyond = sorted(token for token, number in tokenizer.vocabulary.items() if number >= rows)
    if beyond:
        raise ExportError(
            f"the tokenizer of {source} knows {len(beyond)} tokens that its model has no embedding "
            f"for, such as {beyond[0]!r}: its vocabulary is of {rows}. Give the model embeddings "
            "for them (resize_token_embeddings, and training), or pass the tokenizer that it was "
            "trained with"
        )


def check_token_types(tokenizer: CheckpointTokenizer, *, source: str) -> None:
    """Check that a model that takes token types gets none but 0, which the graphs hold.

    Raises:
        ExportError: If it gets others.
    """
    if not tokenizer.gives_token_types:
        return
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(PARITY_TEXTS)):
        if any(encoding.type_ids):
            raise ExportError(
                f"the tokenizer of {source} gives a text the token types "
                f"{encoding.type_ids[:8]}, and this version exports models whose token types are "
                f"all 0. If it was trained with 0, write that as each type_id of post_processor's "
                f'"single" in a copy of its {TOKENIZER_FILE}'
            )


# What transformers 4.57 does to a tokenizer.json.


Change = Callable[[Tokenizer, Mapping[str, Any], Mapping[str, str], Path], None]
"""Changes a tokenizer by settings; is told the special tokens and the checkpoint, too."""


@dataclass(frozen=True)
class _Class:
    """A class of fast tokenizers in transformers 4.57.

    Attributes:
        special_tokens: Special tokens that it has where settings name none.
        changes: What settings change in the file that it reads.
        gives_token_types: Whether its model_input_names has token types.
        padding_side: Side that it pads on where settings name none.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    gives_token_types: bool = False
    padding_side: str = "right"


def _change_prefix_space(
    tokenizer: Tokenizer, settings: Mapping[str, Any], _names: Mapping[str, str], _folder: Path
) -> None:
    """Do what PreTrainedTokenizerFast does; its pre-tokenizers of this kind are ByteLevel."""
    state = _state(tokenizer.pre_tokenizer)
    asked = settings.get("add_prefix_space", state.get("add_prefix_space"))
    if state.get("add_prefix_space", asked) != asked and state.pop("type") == "ByteLevel":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{**state, "add_prefix_space": asked})


def _change_bert_normalizer(
    tokenizer: Tokenizer, settings: Mapping[str, Any], _names: Mapping[str, str], _folder: Path
) -> None:
    state = _state(tokenizer.normalizer)
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


def _change_frame(
    tokenizer: Tokenizer, settings: Mapping[str, Any], names: Mapping[str, str], folder: Path
) -> None:
    """Put the tokens of beginning and end where LlamaTokenizerFast puts them."""
    if not settings.keys() & {"add_bos_token", "add_eos_token"}:
        return
    try:
        around = special_tokens_around(tokenizer)
    except BundleError:  # it is replaced
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
    """Have a space put before a text, or not, as LlamaTokenizerFast does.

    With that setting it is made anew, of ``tokenizer.model``; what comes out differs from the file
    in this alone.
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


_BERT = _Class(
    {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    (_change_prefix_space, _change_bert_normalizer),
    gives_token_types=True,
)  # fmt: skip

_ROBERTA = _Class(
    {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
        "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>",
    },
    (_change_prefix_space,),
)  # fmt: skip

_CLASSES = {
    "PreTrainedTokenizer": _Class(changes=(_change_prefix_space,), gives_token_types=True),
    # That of transformers 5, which leaves the file as it is.
    "TokenizersBackend": _Class(gives_token_types=True),
    "BertTokenizer": _BERT,
    "ConvBertTokenizer": _BERT,
    "DistilBertTokenizer": _Class(_BERT.special_tokens, _BERT.changes),
    "ElectraTokenizer": _BERT,
    "MobileBertTokenizer": _BERT,
    "RobertaTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _ROBERTA,
    "LlamaTokenizer": _Class(
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        (_change_prefix_space, _change_llama_space, _change_frame),
        padding_side="left",
    ),
    "GemmaTokenizer": _Class(
        {
            "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
        (_change_prefix_space, _change_frame),
        padding_side="left",
    ),
    "Qwen2Tokenizer": _Class(
        {
            "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
        (_change_prefix_space,),
    ),
}  # fmt: skip
"""By name without ``Fast``. Of another class the file has to give what transformers gives."""

_CLASS_OF_TYPE = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "mistral": "LlamaTokenizer",
    "gemma2": "GemmaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}
"""Where no file names a class: by model_type."""


def _from_files(folder: Path, settings: Mapping[str, Any]) -> CheckpointTokenizer:
    path = folder / TOKENIZER_FILE
    check_not_pointer(path, error=ExportError)
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ExportError(f"cannot load the tokenizer {path}: {first_lines(error)}") from error
    name = _class_name(folder, settings)
    theirs: PreTrainedTokenizerFast | ExportError
    try:
        theirs = _load_with_transformers(folder)
    except ExportError as error:
        theirs = error
    known = _CLASSES.get(name)
    unknown = [key for key in _UNKNOWN_SETTINGS if settings.get(key)]
    if known is None:
        unknown.append(f"the class {name}")
    if unknown and isinstance(theirs, ExportError):
        raise theirs
    kind = known or _Class(
        special_tokens=_named(theirs)[0],
        gives_token_types="token_type_ids" in theirs.model_input_names,  # type: ignore[union-attr]
        padding_side=theirs.padding_side,  # type: ignore[union-attr]
    )
    cuts, pads = backend.truncation or {}, backend.padding or {}
    backend.no_truncation()
    backend.no_padding()
    try:
        names, additional = _add_tokens(backend, folder, settings, kind, pads.get("pad_token"))
        for change in kind.changes:
            change(backend, settings, names, folder)
    except (AttributeError, TypeError, ValueError) as error:
        raise ExportError(
            f"{folder / SETTINGS_FILE} says what no tokenizer can be: {first_lines(error)}"
        ) from error
    _compare(backend, theirs, folder, unknown=unknown)
    inputs = settings.get("model_input_names")
    return CheckpointTokenizer(
        backend_tokenizer=backend,
        special_tokens=names,
        additional_special_tokens=additional,
        padding_side=settings.get("padding_side", pads.get("direction", kind.padding_side)),
        truncation_side=settings.get("truncation_side", cuts.get("direction", "right")),
        model_max_length=_length(settings),
        clean_up_tokenization_spaces=bool(settings.get("clean_up_tokenization_spaces")),
        gives_token_types="token_type_ids" in inputs if inputs else kind.gives_token_types,
    )


def _class_name(folder: Path, settings: Mapping[str, Any]) -> str:
    name = settings.get("tokenizer_class")
    if name is None:
        config = _read(folder / "config.json")
        model_type = config.get("model_type")
        name = config.get("tokenizer_class") or _CLASS_OF_TYPE.get(str(model_type), "")
    return str(name).removesuffix("Fast")


def _has_own_code(folder: Path, settings: Mapping[str, Any]) -> bool:
    named = settings if settings.keys() & {"auto_map", "tokenizer_class"} else None
    code = (_read(folder / "config.json") if named is None else named).get("auto_map")
    return bool(code.get("AutoTokenizer") if isinstance(code, dict) else code)


def _length(settings: Mapping[str, Any]) -> int:
    value = settings.get("model_max_length", settings.get("max_len"))
    known = isinstance(value, int | float) and 0 < value < _NO_LENGTH
    return int(value) if known else _NO_LENGTH


def _add_tokens(
    tokenizer: Tokenizer,
    folder: Path,
    settings: Mapping[str, Any],
    kind: _Class,
    padding: str | None,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Add what settings list besides the file's own tokens, as transformers 4.57 does.

    Returns:
        Special tokens by what they are for, and the others.
    """
    named = {**({"pad_token": padding} if padding else {}), **settings}
    sources = [settings]
    listed = settings.get("added_tokens_decoder")
    if listed is None:  # as transformers wrote it until 4.33
        sources.append(_read(folder / SPECIAL_TOKENS_FILE))
        named |= sources[1]
    tokens = {role: _token(named[role]) for role in _ROLES if named.get(role) is not None}
    others = []
    for source in sources:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            values = source.get(key) or ()
            values = values.values() if isinstance(values, dict) else values
            others += [_token(value) for value in values]
    for role, token in kind.special_tokens.items():
        if role not in named and tokenizer.token_to_id(token) is not None:
            tokens[role] = AddedToken(token, special=True)
    special = [*tokens.values(), *others]
    contents = {token.content for token in special}
    if listed is None:
        numbers = _read(folder / "added_tokens.json")
        own = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        listed = {
            number: {"content": content, "normalized": content not in contents}
            for content, number in numbers.items()
            if content not in own
        }
    known = tokenizer.get_added_tokens_decoder().values()
    states = {repr(token) for token in known}
    new = [_token(listed[number], special=False) for number in sorted(listed, key=int)]
    new = [token for token in new if repr(token) not in states]
    there = {token.content for token in (*known, *new)}
    for token in special:
        if token.content not in there:
            new.append(token)
            there.add(token.content)
    for token in new:
        token.special = token.special or token.content in contents
    tokenizer.add_tokens(new)
    return (
        {role: tokens[role].content for role in _ROLES if role in tokens},
        tuple(dict.fromkeys(token.content for token in others)),
    )


def _token(value: Any, *, special: bool = True) -> AddedToken:
    if isinstance(value, dict):
        fields = {key: item for key, item in value.items() if key != "__type"}
        return AddedToken(**{"special": special, **fields})
    return AddedToken(str(value), special=special)


# What the installed transformers does.


def _load_with_transformers(
    folder: Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises bare Exception
        raise ExportError(f"cannot load a tokenizer from {folder}: {first_lines(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ExportError(
            f"{folder} has no fast tokenizer ({type(tokenizer).__name__} runs in Python only)"
        )
    return tokenizer


def _from_transformers(theirs: PreTrainedTokenizerFast) -> CheckpointTokenizer:
    names, additional = _named(theirs)
    backend = theirs.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return CheckpointTokenizer(
        backend_tokenizer=backend,
        special_tokens=names,
        additional_special_tokens=additional,
        padding_side=theirs.padding_side,
        truncation_side=theirs.truncation_side,
        model_max_length=int(theirs.model_max_length),
        clean_up_tokenization_spaces=bool(theirs.clean_up_tokenization_spaces),
        gives_token_types="token_type_ids" in theirs.model_input_names,
    )


def _named(theirs: PreTrainedTokenizerFast) -> tuple[dict[str, str], tuple[str, ...]]:
    tokens = {role: getattr(theirs, role, None) for role in _ROLES}
    names = {role: str(token) for role, token in tokens.items() if token is not None}
    # The second is transformers 5's name of the first.
    others = [
        str(token)
        for key in ("additional_special_tokens", "extra_special_tokens")
        for token in getattr(theirs, key, None) or ()
    ]
    return names, tuple(dict.fromkeys(others))


def _compare(
    ours: Tokenizer,
    theirs: PreTrainedTokenizerFast | ExportError,
    folder: Path,
    *,
    unknown: Sequence[str],
) -> None:
    """Tell where the installed transformers makes other token ids than the files say.

    Raises:
        ExportError: If it does, and what it follows is `unknown` here.
    """
    version = f"transformers {transformers.__version__}"
    taken = (
        f"The bundle's token ids are those of the checkpoint's own {TOKENIZER_FILE}, with what its "
        f"{SETTINGS_FILE} changes"
    )
    if isinstance(theirs, ExportError):
        logger.warning("%s %s. %s; they could not be compared", version, theirs, taken)
        return
    special = [token.content for token in ours.get_added_tokens_decoder().values()]
    within = [f"{token} a{token}b {token} c" for token in special[:_MOST_SPECIAL_TOKENS]]
    texts = [*PARITY_TEXTS, *TOKENIZER_TEXTS, *within]
    found = [encoding.ids for encoding in ours.encode_batch(texts)]
    try:
        with quiet():
            expected = theirs(texts, padding=False, truncation=False)["input_ids"]
    except Exception as error:  # noqa: BLE001  # tokenizers raises bare Exception
        expected = [f"{type(error).__name__}: {first_lines(error)}"] * len(texts)
    for text, own, other in zip(texts, found, expected, strict=True):
        if own == other:
            continue
        difference = (
            f"{version} tokenises {text[:40]!r} as {_beginning(other)}, where the files in "
            f"{folder} say {_beginning(own)}"
        )
        if unknown:
            raise ExportError(
                f"{difference}; what {' and '.join(unknown)} of its {SETTINGS_FILE} changes is not "
                "known here. Take that out of a copy, with PreTrainedTokenizerFast as its "
                f"tokenizer_class, if the model was trained by what its {TOKENIZER_FILE} says"
            )
        logger.warning("%s. %s", difference, taken)
        return


def _beginning(ids: Any) -> str:
    return ids if isinstance(ids, str) else f"[{', '.join(map(str, ids[:12]))}]"


def _check(tokenizer: CheckpointTokenizer, folder: Path, *, right_padding: bool) -> None:
    try:
        special_tokens_around(tokenizer.backend_tokenizer)
    except BundleError as error:
        raise ExportError(f"the tokenizer of {folder} cannot be exported: {error}") from error
    if tokenizer.special_tokens.get("pad_token") is None:
        raise ExportError(f"the tokenizer of {folder} has no padding token")
    wrong_side = right_padding and tokenizer.padding_side != "right"
    if wrong_side or tokenizer.truncation_side != "right":
        raise ExportError(
            f"the tokenizer of {folder} pads on the {tokenizer.padding_side} and truncates on "
            f"the {tokenizer.truncation_side}; here it is done on the right"
        )
    dropout = getattr(tokenizer.backend_tokenizer.model, "dropout", None)
    if dropout:
        raise ExportError(
            f"the tokenizer of {folder} leaves out merges at random (dropout {dropout} of its "
            f"model), as for training; set it to null in a copy of its {TOKENIZER_FILE}"
        )


def _state(part: Any) -> dict[str, Any]:
    """Return what a part of a tokenizer consists of, as its file has it; empty if there is none."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _fields(token: AddedToken) -> dict[str, Any]:
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def _read(path: Path) -> dict[str, Any]:
    """Read one of the files beside a ``tokenizer.json``; empty if there is none."""
    try:
        return dict(read_json(path, error=ExportError))
    except FileNotFoundError:
        return {}
