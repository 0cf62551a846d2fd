"""``bge.json``: what a bundle says about itself.

A bundle is read by this table alone; the runtime keeps no list of models. The format
is versioned: a reader refuses a newer version and ignores keys it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bge_runtime.bundle.parity import Parity
from bge_runtime.errors import BundleError, BundleVersionError
from bge_runtime.system import parse_json

FILE_NAME = "bge.json"
FORMAT = "bge-runtime bundle"
FORMAT_VERSION = 1

SENTENCE_EMBEDDING = "sentence_embedding"
"""The output that every graph has: pooled vectors, not normalised."""

TOKEN_WEIGHTS, COLBERT_VECS = HEAD_OUTPUTS = ("token_weights", "colbert_vecs")
"""What the graphs of a model of M3's class give besides: a weight for each token, and a
vector for each but the first, not normalised."""

COMPUTE_HEADS = "compute_heads"
"""Input of a graph that computes `HEAD_OUTPUTS` only where it is true, bool of shape ``()``; else
they are empty."""

CUMULATIVE_LENGTHS, TOKEN_OFFSET = "cumulative_sequence_length", "token_offset"
"""Inputs of a graph whose texts lie behind each other without padding: where each begins, int32
of shape ``(batch + 1,)``; and where in a padded batch each token would be, then where the padding
would, int32 of shape ``(batch, longest)``. Its ``input_ids`` and ``position_ids`` have the shape
``(tokens,)``, and so has the first axis of what it gives for each token."""

UNIFORM_BATCH = "even_batch"
"""Input in the place of `TOKEN_OFFSET` where all texts of a batch must have one length: of the same
type and shape, and nothing but the shape is read."""

UNIFORM_LENGTH = "one_length"
"""Input of a graph that has a branch of its own for texts of one length, and takes it where this is
true, bool of shape ``()``."""

_PAST, _PRESENT = "past_key_values.", "present."


def past_names(layer: int) -> tuple[str, str]:
    """Name a decoder's inputs of one layer: keys and values of the tokens before.

    Both float32 of shape ``(1, kv_heads, past, head_dim)``, shared by all rows of a batch.
    """
    return f"{_PAST}{layer}.key", f"{_PAST}{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Name a decoder's outputs of one layer: keys and values of the new tokens.

    Both float32 of shape ``(batch, kv_heads, sequence, head_dim)``.
    """
    return f"{_PRESENT}{layer}.key", f"{_PRESENT}{layer}.value"


def past_names_of(inputs: Iterable[str]) -> tuple[str, ...]:
    """Pick those of all layers out of a graph's inputs, in the graph's order.

    Returns:
        None for an encoder, or for a decoder whose tokens see those behind them.
    """
    return tuple(name for name in inputs if name.startswith(_PAST))


def present_name(past_name: str) -> str:
    """Name the output of a batch's own keys or values by the input for those before."""
    return _PRESENT + past_name.removeprefix(_PAST)


@dataclass(frozen=True, kw_only=True)
class SentenceTransformersSettings:
    """What the checkpoint's sentence-transformers folder asks for, beside model and pooling.

    FlagEmbedding does not read it, and its classes do not follow it; the integrations do.

    Attributes:
        max_seq_length: Tokens that a text is cut to; None for all that the model can read.
        lowercase: Whether texts are lowercased before they are tokenised.
        normalize: Whether vectors are scaled to unit length.
        truncate_dim: Components that are kept of a vector, scaled or not; None for all.
        prompts: What is put before texts, by name.
        default_prompt_name: The prompt of texts of which nothing is said.
        similarity: How vectors are compared.
    """

    max_seq_length: int | None = None
    lowercase: bool = False
    normalize: bool = True
    truncate_dim: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"


@dataclass(frozen=True, kw_only=True)
class Model:
    """The facts of the exported model.

    Attributes:
        name: Name of the checkpoint, without owner.
        model_class: FlagEmbedding's class name for it.
        architecture: ``model_type`` of its configuration.
        dim: Components of an embedding.
        layers: Transformer layers.
        vocab_size: Rows of the word-embedding table.
        max_length: Most tokens that it can read, special tokens included.
        pooling: Pooling that its graphs contain.
        query_instruction: Instruction its authors recommend for queries, if any.
        query_instruction_format: How instruction and query are joined.
        pad_token_id: Id that fills shorter rows of a batch.
        colbert_dim: Components of a token's vector, of a model with M3's heads.
        weightless_token_ids: Ids that never get a lexical weight, likewise.
        sentence_transformers: What sentence-transformers follows besides.
    """

    name: str
    model_class: str
    architecture: str
    dim: int
    layers: int
    vocab_size: int
    max_length: int
    pooling: str
    query_instruction: str | None
    query_instruction_format: str
    pad_token_id: int
    colbert_dim: int | None = None
    weightless_token_ids: tuple[int, ...] = ()
    sentence_transformers: SentenceTransformersSettings = field(
        default_factory=SentenceTransformersSettings
    )


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An ONNX graph of the bundle.

    Attributes:
        file: Path inside the bundle.
        weights: Path of its external data, which graphs may share.
        opset: Version of the standard operators.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        quantization_block: Of one with matrices in 8 bits, channels that an engine that rounds
            what they multiply rounds together; None leaves it to the engine.
    """

    file: str
    weights: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    quantization_block: int | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a graph, with the parity measured for it.

    Attributes:
        name: Unique in the bundle.
        graph: Key of the graph it runs.
        engine: Engine that runs it.
        device: Kind of device, such as ``"cpu"``.
        precision: Arithmetic in force, such as ``"fp32"``.
        parity: Measured against PyTorch's fp32 vectors; None if it was not measured.
    """

    name: str
    graph: str
    engine: str
    device: str
    precision: str
    parity: Parity | None


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the bundle.

    Attributes:
        size_bytes: Its length.
        sha256: Hash of its content, in hexadecimal.
    """

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a bundle comes from.

    Attributes:
        source: Hub id, path or name given to ``bge-export``.
        revision: Commit of the hub repository, if it came from the hub.
        random_seed: Seed of random weights; None for a real checkpoint.
        weights_sha256: Hash of each weight file of the checkpoint.
        versions: Version of each library that took part.
    """

    source: str
    revision: str | None
    random_seed: int | None
    weights_sha256: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``bge.json``.

    Attributes:
        model: Facts of the model.
        graphs: Graphs by key.
        variants: Ways to run them, the preferred one first.
        files: Every other file of the bundle, by path.
        provenance: Where it comes from.
    """

    model: Model
    graphs: Mapping[str, Graph]
    variants: tuple[Variant, ...]
    files: Mapping[str, File]
    provenance: Provenance

    def to_json(self) -> str:
        """Serialise, with the format's name and version first."""
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(
        cls,
        text: bytes | str,
        *,
        where: str,
        remedy: str = "export the model again with bge-export",
    ) -> Manifest:
        """Parse the text of a ``bge.json``.

        Args:
            text: The file's content, in UTF-8.
            where: Path to name in errors.
            remedy: What helps if it is damaged, for errors.

        Raises:
            BundleVersionError: If it was written for a newer format.
            BundleError: If it is not a bundle's manifest, or is damaged.
        """
        data = parse_json(
            text,
            where=where,
            error=BundleError,
            kind=object,
            remedy=remedy,
        )
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(
                f"{where} is not a bundle manifest: it does not say "
                f'"format": "{FORMAT}"; point at a folder that bge-export wrote'
            )
        version = data.get("format_version")
        if not isinstance(version, int):
            raise BundleError(f"{where} has no format_version; export the model again")
        if version > FORMAT_VERSION:
            raise BundleVersionError(
                f"{where} has format version {version}, and this bge-runtime reads up to "
                f"{FORMAT_VERSION}: run `pip install -U bge-runtime`"
            )
        try:
            return cls(
                model=_model(data["model"]),
                graphs={key: _graph(value) for key, value in data["graphs"].items()},
                variants=tuple(_variant(value) for value in data["variants"]),
                files={path: File(**_known(File, value)) for path, value in data["files"].items()},
                provenance=Provenance(**_known(Provenance, data["provenance"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"{where} is damaged ({type(error).__name__}: {error}); {remedy}"
            ) from error


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return {key: value for key, value in data.items() if key in names}


def _model(data: Mapping[str, Any]) -> Model:
    fields = _known(Model, data)
    ids = tuple(int(number) for number in fields.get("weightless_token_ids", ()))
    settings = _known(SentenceTransformersSettings, fields.get("sentence_transformers", {}))
    return Model(
        **{
            **fields,
            "weightless_token_ids": ids,
            "sentence_transformers": SentenceTransformersSettings(**settings),
        }
    )


def _graph(data: Mapping[str, Any]) -> Graph:
    fields = _known(Graph, data)
    return Graph(
        **{**fields, "inputs": tuple(fields["inputs"]), "outputs": tuple(fields["outputs"])}
    )


def _variant(data: Mapping[str, Any]) -> Variant:
    fields = _known(Variant, data)
    parity = fields["parity"]
    return Variant(**{**fields, "parity": None if parity is None else Parity.from_json(parity)})
