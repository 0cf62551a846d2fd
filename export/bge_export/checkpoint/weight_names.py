"""Match the tensors of a checkpoint with those that a model reads.

transformers drops tensors that its model does not have, and version 5 drops weights that version 4
reads. So names are compared here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bge_runtime.errors import ExportError

_END = r"(weight|bias|gamma|beta)"

_UNUSED = (
    # BERT's pooler, which follows the hidden states that are pooled here.
    rf"pooler\.(dense\.)?{_END}",
    # Heads of BERT's pre-training.
    rf"cls\.predictions\.(transform\.(dense|LayerNorm)\.|decoder\.)?{_END}",
    rf"cls\.seq_relationship\.{_END}",
    # The head of a language model: RoBERTa's, and that of a decoder.
    rf"lm_head\.((dense|layer_norm|decoder)\.)?{_END}",
    # Heads of other tasks. Models for those are refused by their config.json.
    rf"(classifier|qa_outputs)\.((dense|out_proj)\.)?{_END}",
    # Constants that transformers before 4.31 saved.
    r"embeddings\.(position_ids|token_type_ids)",
    # Computed from rope_theta. Older decoders saved it.
    r"(.*\.)?rotary_emb\.inv_freq",
)
"""Tensors that vectors do not depend on. A checkpoint may have or lack them.

A reranker reads some of them, which it must have."""

_LAYER = re.compile(r"\blayers?\.(\d+)\.")

_ADVICE = {
    r"lora_|\.base_layer\.|\.original_module\.|modules_to_save|ia3_|hada_|oft_|adapter": (
        "They are of an adapter: merge it (peft's merge_and_unload) and save the model again"
    ),
    r"qweight|qzeros|g_idx|\.scales$|_scale$|weight_(packed|shape|format)|zero_point|absmax|quant_"
    r"|\.SCB$": "They are of quantized weights: export the checkpoint that was quantized",
    r"distance_embedding|relative_attention_bias|rel_embeddings": (
        "They are of relative positions, which config.json has to ask for "
        "(position_embedding_type), and transformers before version 5 computes"
    ),
    r"cross_?attention": "They are of a decoder that attends to an encoder, and is no embedder",
}
"""Advice about unread tensors, by a pattern in their names."""

_SAVE_AGAIN = (
    "If vectors are to be made without them, load the model with transformers and save it with "
    "save_pretrained, which leaves them out"
)


@dataclass(frozen=True)
class Match:
    """Which tensor of a checkpoint is which one of the model.

    Attributes:
        found: Names in the checkpoint, by name in the model.
        unread: Names in the checkpoint that the model does not have. Unused tensors are left out.
        missing: Names in the model that the checkpoint does not have. Unused tensors are left out.
    """

    found: dict[str, str]
    unread: list[str]
    missing: list[str]


def match_weights(
    stored: Iterable[str], read: Collection[str], *, prefix: str, with_head: bool = False
) -> Match:
    """Match the names in a checkpoint with those of a model.

    Args:
        stored: Names in the checkpoint.
        read: Names that the model reads.
        prefix: Prefix of the names in a checkpoint with a head, without the dot. If any name has
            it, names without it belong to the head.
        with_head: Whether the model reads the head too, so that its own names have the prefix.
    """
    stored, prefix = sorted(stored), f"{prefix}."
    prefixed = any(name.startswith(prefix) for name in stored)
    found: dict[str, str] = {}
    unread = []
    for name in stored:
        own = name if with_head else name.removeprefix(prefix)
        # TensorFlow's names, in early BERT checkpoints.
        own = own.replace("LayerNorm.gamma", "LayerNorm.weight")
        own = own.replace("LayerNorm.beta", "LayerNorm.bias")
        fits = with_head or name.startswith(prefix) == prefixed
        if own in read and own not in found and fits:
            found[own] = name
        elif not is_unused(own.removeprefix(prefix)):
            unread.append(name)
    missing = sorted(name for name in set(read) - set(found) if with_head or not is_unused(name))
    return Match(found, unread, missing)


def is_unused(name: str) -> bool:
    """Return whether vectors do not depend on a tensor. The name has no prefix."""
    return any(re.fullmatch(pattern, name) for pattern in _UNUSED)


def require_match(match: Match, read: Collection[str], *, source: str) -> None:
    """Refuse a checkpoint that has more or fewer tensors than its model reads.

    Raises:
        ExportError: If it does. The message names tensors and advises what to do.
    """
    if match.unread:
        lacks = f" It lacks {_name_some(match.missing)}." if match.missing else ""
        raise ExportError(
            f"{source} holds {_name_some(match.unread)}, which a model of its config.json does not "
            f"read: vectors would be made without them.{lacks} {_advise(match, read)}"
        )
    if match.missing:
        raise ExportError(
            f"{source} lacks {_name_some(match.missing)}, which a model of its config.json has; it "
            "is damaged, or of another type or size than that says"
        )


def _name_some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} tensors, such as {shown}" if len(names) > 3 else shown


def _advise(match: Match, read: Collection[str]) -> str:
    unread = match.unread
    for pattern, advice in _ADVICE.items():
        if any(re.search(pattern, name) for name in unread):
            return advice
    if any(name in read for name in unread):
        return "Its names are with and without a prefix, or old and new ones: make them all alike"
    if any(name.endswith(f".{own}") for name in unread for own in read):
        return "They are named as of a model within another: save that one alone (save_pretrained)"
    count = len(_layers(read))
    if count and _layers(unread) - _layers(read):
        return f"num_hidden_layers in its config.json is {count}, and it has more. {_SAVE_AGAIN}"
    if match.missing:
        return "It is damaged, or of another type or size than its config.json says"
    return _SAVE_AGAIN


def _layers(names: Iterable[str]) -> set[str]:
    return {match[1] for name in names if (match := _LAYER.search(name))}
