"""Write checkpoints at full size with seeded random weights, for benchmarks and tests.

They have an architecture's speed, memory and numerics, but their vectors mean nothing. Weights have
a larger spread than an untrained model's. With the usual spread, all tokens attend alike and the
residual stream dominates, so a graph that ignores the mask, or has two layers swapped, would return
nearly the same vectors.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from bge_export.checkpoint.tokenizer import SETTINGS_FILE, load_tokenizer
from bge_export.synthetic.decoder import write_random_decoder
from bge_runtime.errors import ExportError
from bge_runtime.sources import (
    DECODER_ONLY_ICL,
    DECODERS,
    ENCODER_ONLY_M3,
    MODELS,
    RERANKER_DECODER,
    RERANKER_ENCODER,
    RERANKERS,
    BertShape,
    DecoderShape,
    ModelSpec,
    find_model,
)

_SPECIAL = {
    "bert": {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103},
    "xlm-roberta": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4},
    "mistral": {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3},
    "gemma": {"<pad>": 0, "</s>": 1, "<s>": 2, "<unk>": 3},
    "gemma2": {"<pad>": 0, "</s>": 1, "<s>": 2, "<unk>": 3},
    "qwen2": {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3},
    "qwen3": {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3},
}
"""Special tokens as in the published vocabularies; BERT's English and Chinese ones are the same.
XLM-R's mask is its last id. Decoders have those of sentence-piece, whatever their own are."""

_TAGS = ("<instruct>", "<query>")
"""Tokens that bge-multilingual-gemma2 adds at the end of its vocabulary."""

_LOGIT_SPREAD = 4.0
"""Standard deviation of a random reranker's logits."""

_EXAMPLE_TAGS = (*_TAGS, "<response>")
"""Tokens that bge-en-icl adds."""


def find_random_model(source: str) -> ModelSpec:
    """Return a known model that can be written with random weights.

    Raises:
        ExportError: If the name is not one of them. The message lists them.
    """
    spec = find_model(source)
    if spec is None or spec.shape is None:
        names = ", ".join(name for name, known in (MODELS | RERANKERS).items() if known.shape)
        raise ExportError(f"--random-weights supports the architectures {names}, not {source}")
    return spec


def write_random_checkpoint(
    spec: ModelSpec,
    folder: Path,
    *,
    seed: int,
    tokenizer: Path | None = None,
    layers: int | None = None,
) -> None:
    """Write a complete checkpoint: configuration, weights and tokenizer.

    Args:
        spec: A model with a shape.
        folder: An empty folder.
        seed: Seed of the weights. The same seed gives the same weights.
        tokenizer: Folder with the tokenizer; None for a generated one of the right size.
        layers: Number of layers; None for all of the model's.

    Raises:
        ExportError: If the tokenizer has more ids than the model has embeddings.
    """
    assert spec.shape is not None
    shape = spec.shape if layers is None else replace(spec.shape, layers=layers)
    decoder = isinstance(shape, DecoderShape)
    own = None if tokenizer is None else load_tokenizer(tokenizer, right_padding=not decoder)
    if own is not None and len(own.vocabulary) > shape.vocab_size:
        raise ExportError(
            f"the tokenizer in {tokenizer} has {len(own.vocabulary):,} ids, and {spec.name} has "
            f"embeddings for {shape.vocab_size:,}; pass a tokenizer of the same family"
        )
    if isinstance(shape, DecoderShape):
        answers = spec.model_class == RERANKER_DECODER
        write_random_decoder(shape, folder, seed=seed, answers=answers)
    elif spec.model_class == RERANKER_ENCODER:
        make_random_reranker(shape, seed=seed).save_pretrained(folder)
    else:
        make_random_encoder(shape, seed=seed).save_pretrained(folder)
    if spec.model_class == ENCODER_ONLY_M3:
        write_random_heads(folder, shape.hidden_size, seed=seed)
    if own is None:
        made = make_tokenizer(
            shape.vocab_size,
            shape.architecture,
            reads_examples=spec.model_class == DECODER_ONLY_ICL,
            max_length=shape.max_length,
        )
        made.save_pretrained(folder)
    else:
        own.write(folder, max_length=own.model_max_length, token_types=own.gives_token_types)
    if spec.model_class == RERANKER_ENCODER:
        name_tokenizer_class(folder, shape.architecture)


def make_random_encoder(shape: BertShape, *, seed: int) -> BertModel | XLMRobertaModel:
    """Return an encoder with random weights of a large spread."""
    kind = XLMRobertaModel if shape.architecture == "xlm-roberta" else BertModel
    config = _make_config(shape)
    # Created on the meta device: the default initialization would double the time.
    with torch.device("meta"):
        model = kind(config, add_pooling_layer=False)
    model.to_empty(device="cpu")
    widen(model, seed=seed)
    return model.eval()


@torch.no_grad()
def make_random_reranker(
    shape: BertShape, *, seed: int
) -> BertForSequenceClassification | XLMRobertaForSequenceClassification:
    """Return a reranker with random weights of a large spread.

    Its last layer is scaled so that logits of random pairs have a standard deviation of 4 and a
    mean of 0, as those of trained rerankers.
    """
    roberta = shape.architecture == "xlm-roberta"
    kind = XLMRobertaForSequenceClassification if roberta else BertForSequenceClassification
    config = _make_config(shape, num_labels=1)
    with torch.device("meta"):
        model = kind(config)
    model.to_empty(device="cpu")
    widen(model, seed=seed)
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(110, shape.vocab_size, (32, 24), generator=generator)
    logits = model(input_ids=ids).logits
    last = model.classifier.out_proj if roberta else model.classifier
    scale = _LOGIT_SPREAD / logits.std()
    last.weight *= scale
    last.bias.copy_((last.bias - logits.mean()) * scale)
    return model


def name_tokenizer_class(folder: Path, architecture: str) -> None:
    """Name the tokenizer's class in its settings: FlagEmbedding joins pairs as that class does."""
    path = folder / SETTINGS_FILE
    kind = "XLMRobertaTokenizer" if architecture == "xlm-roberta" else "BertTokenizer"
    settings = json.loads(path.read_text("utf-8")) | {"tokenizer_class": kind}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _make_config(shape: BertShape, **options: int) -> BertConfig | XLMRobertaConfig:
    roberta = shape.architecture == "xlm-roberta"
    # RoBERTa counts positions from the padding id, 1.
    options |= {"pad_token_id": 1, "type_vocab_size": 1} if roberta else {}
    return (XLMRobertaConfig if roberta else BertConfig)(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_length + 2 * roberta,
        **options,
    )


def write_random_heads(
    folder: Path, width: int, *, seed: int, colbert_dim: int | None = None
) -> None:
    """Write random heads of M3. About half of the tokens get a weight, up to about 0.5."""
    generator = torch.Generator().manual_seed(seed)
    for name, rows, spread in (("sparse", 1, 0.15), ("colbert", colbert_dim or width, 1.0)):
        state = {
            "weight": torch.randn(rows, width, generator=generator) * spread / math.sqrt(width),
            "bias": torch.randn(rows, generator=generator) * 0.01,
        }
        torch.save(state, folder / f"{name}_linear.pt")


@torch.no_grad()
def widen(model: torch.nn.Module, *, seed: int) -> None:
    """Fill an encoder's weights with random numbers of a large spread.

    Each matrix keeps the scale of its input. Queries and keys have a larger spread, so that
    attention prefers some tokens. Norms and biases differ between channels.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embeddings" not in name:
            gain = 1.5 if ".query." in name or ".key." in name else 1.0
            spread = gain / math.sqrt(parameter.shape[1])
            parameter.normal_(0, spread, generator=generator)
        elif parameter.dim() == 2:
            parameter.normal_(0, 1 if "word" in name else 0.5, generator=generator)
        elif name.endswith("LayerNorm.weight"):
            parameter.normal_(1, 0.1, generator=generator)
        else:
            parameter.normal_(0, 0.1, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        else:
            buffer.zero_()


def make_tokenizer(
    vocab_size: int,
    architecture: str = "bert",
    *,
    reads_examples: bool = False,
    max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer with exactly this many ids.

    Its pieces are single characters (ASCII and the common Chinese ones) and the shortest strings of
    Latin letters, so that words of real text become several known pieces.

    Args:
        vocab_size: Number of ids.
        architecture: Architecture whose special tokens it has. For a decoder, those of
            bge-multilingual-gemma2 too.
        reads_examples: Whether it has those of bge-en-icl instead.
        max_length: Tokens to which it truncates by default.
    """
    special = dict(_SPECIAL[architecture])
    decoder = architecture in DECODERS
    tags = _EXAMPLE_TAGS if reads_examples else _TAGS if decoder else ()
    special |= {tag: vocab_size - len(tags) + i for i, tag in enumerate(tags)}
    pad, unk, cls, sep, mask = (
        ("<pad>", "<unk>", "<s>", "</s>", "<mask>") if "<s>" in special else special
    )
    pieces = iter(dict.fromkeys(_list_pieces()))
    vocabulary = dict(special)
    for number in range(vocab_size):
        if number not in special.values():
            # The first hundred ids are unused, as in BERT's published vocabularies.
            piece = next(pieces, None) if number > special[unk] else None
            vocabulary[piece or f"[unused{number}]"] = number
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # They differ in pairs.
    around = (
        processors.RobertaProcessing if architecture == "xlm-roberta" else processors.BertProcessing
    )
    tokenizer.post_processor = around((sep, special[sep]), (cls, special[cls]))
    # RoBERTa has other names for these two, and FlagEmbedding reads eos_token.
    more = {"bos_token": cls, "eos_token": sep} if "<s>" in special else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token=pad,
        unk_token=unk,
        **more,
        **({"additional_special_tokens": list(tags)} if decoder else
           {"cls_token": cls, "sep_token": sep, "mask_token": mask}),
    )  # fmt: skip


def _list_pieces() -> list[str]:
    ascii_characters = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pairs = [a + b for a in letters for b in letters]
    triples = [pair + c for pair in pairs for c in letters]
    # The 6,763 characters of GB 2312 are the common ones.
    pairs_of_bytes = (bytes([a, b]) for a in range(0xB0, 0xF8) for b in range(0xA1, 0xFF))
    chinese = [pair.decode("gb2312", "ignore") for pair in pairs_of_bytes]
    chinese = [*"，。？！：；、“”（）《》", *filter(None, chinese)]
    singles = ascii_characters + ["##" + c for c in ascii_characters] + chinese
    endings = ["##" + piece for piece in pairs + triples]
    return singles + pairs + endings[: len(pairs)] + triples[::2] + endings[len(pairs) :: 2]
