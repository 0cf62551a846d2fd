"""``bge.json``, the manifest of a bundle.

The runtime opens a bundle by its manifest alone. The format has a version: readers reject newer
ones and ignore unknown keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from bge_runtime.bundle.graph_io import LOGITS
from bge_runtime.bundle.parity import Parity
from bge_runtime.bundle.score_parity import ScoreParity
from bge_runtime.errors import BundleError, BundleVersionError
from bge_runtime.system import parse_json

FILE_NAME = "bge.json"
FORMAT = "bge-runtime bundle"
FORMAT_VERSION = 2
"""Newest version that is read. Version 2 is for rerankers; bundles of embedders stay in version 1,
which every bge-runtime reads."""


@dataclass(frozen=True, kw_only=True)
class SentenceTransformersSettings:
    """Settings of the checkpoint's sentence-transformers files, apart from pooling.

    The integrations follow them. FlagEmbedding does not, nor do the classes of its names here.

    Attributes:
        max_seq_length: Tokens that a text is cut to; None for the model's maximum.
        lowercase: Whether texts are lowercased before they are tokenised.
        normalize: Whether vectors are scaled to unit length.
        truncate_dim: Components of a vector that are kept; None for all.
        prompts: Texts that are put before inputs, by name.
        default_prompt_name: Name of the prompt for inputs that are neither queries nor documents.
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
class RerankerPrompt:
    """How a decoder is asked whether a passage answers a query.

    The tokens of ``start``, the query, ``separator``, the passage and the texts of ``end`` follow
    each other, each tokenized on its own and without special tokens.

    Attributes:
        start: Text before the query, such as a beginning-of-sequence token.
        query_instruction: Filled into ``query_format``, with the query.
        query_format: Two ``{}``.
        separator: Text between query and passage.
        passage_instruction: Filled into ``passage_format``, with the passage.
        passage_format: Two ``{}``.
        end: Texts behind the passage.
        counts_all: Whether a maximum length counts all tokens, as for Qwen3-Reranker. FlagEmbedding
            cuts the passage where ``start``, query, separator and passage exceed the length by more
            than the tokens of ``separator`` and of the last text of ``end``.
    """

    start: str
    query_instruction: str
    query_format: str
    separator: str
    passage_instruction: str
    passage_format: str
    end: tuple[str, ...]
    counts_all: bool = False


@dataclass(frozen=True, kw_only=True)
class Model:
    """Properties of the exported model.

    Attributes:
        name: Name of the checkpoint, without owner.
        model_class: FlagEmbedding's class name for it.
        architecture: ``model_type`` of its configuration.
        dim: Components of an embedding.
        layers: Transformer layers.
        vocab_size: Rows of the word-embedding table.
        max_length: Most tokens of an input, special tokens included.
        pooling: Pooling in its graphs.
        query_instruction: Instruction that its authors recommend for queries, if any.
        query_instruction_format: How instruction and query are joined.
        pad_token_id: Id that fills shorter rows of a batch.
        colbert_dim: Components of a ColBERT vector, for models with M3's heads.
        weightless_token_ids: Ids without a lexical weight, for models with M3's heads.
        prompt: How a decoder is asked about a pair, for rerankers that are decoders.
        sentence_transformers: Settings of its sentence-transformers files.
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
    prompt: RerankerPrompt | None = None
    sentence_transformers: SentenceTransformersSettings = field(
        default_factory=SentenceTransformersSettings
    )


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph of the bundle, in ONNX's format or OpenVINO's.

    Attributes:
        file: Path inside the bundle.
        weights: Path of its weights, which graphs may share.
        opset: Version of the standard operator set.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        quantization_block: For 8-bit graphs, number of channels that share a scale when an
            engine quantises activations; None leaves it to the engine.
        quantization: For 8-bit graphs, how it was quantized: how many products have ``static``
            scales of activations and ``dynamic`` ones, the predicted ``error`` as a share of the
            distance between texts, and the number of ``texts`` and ``seed`` of the calibration.
    """

    file: str
    weights: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    quantization_block: int | None = None
    quantization: Mapping[str, float] | None = None


class Requirement(NamedTuple):
    """What a machine needs to run a variant.

    Attributes:
        engine: Engine that runs it.
        device: Kind of device, such as ``"cpu"``.
        precision: Precision in force, such as ``"fp32"``.
    """

    engine: str
    device: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a graph, with its measured parity.

    Attributes:
        name: Unique in the bundle.
        graph: Key of the graph it runs.
        engine: Engine that runs it.
        device: Kind of device, such as ``"cpu"``.
        precision: Precision in force, such as ``"fp32"``.
        parity: Measured against PyTorch's fp32 vectors, or a reranker's scores; None if it was not
            measured.
    """

    name: str
    graph: str
    engine: str
    device: str
    precision: str
    parity: Parity | ScoreParity | None

    @property
    def requirement(self) -> Requirement:
        """What a machine needs to run it."""
        return Requirement(self.engine, self.device, self.precision)


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
        source: Hub ID, path or name given to ``bge-export``.
        revision: Commit of the hub repository, if it came from the hub.
        random_seed: Seed of random weights; None for a real checkpoint.
        weights_sha256: Hash of each of the checkpoint's weight files.
        versions: Version of each library that was used.
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
        model: Properties of the model.
        graphs: Graphs by key.
        variants: Ways to run the graphs, in order of preference.
        files: All other files of the bundle, by path.
        provenance: Where it comes from.
    """

    model: Model
    graphs: Mapping[str, Graph]
    variants: tuple[Variant, ...]
    files: Mapping[str, File]
    provenance: Provenance

    def to_json(self) -> str:
        """Return the text of ``bge.json``, which begins with the format's name and version."""
        reranks = any(LOGITS in graph.outputs for graph in self.graphs.values())
        version = FORMAT_VERSION if reranks else 1
        document = {"format": FORMAT, "format_version": version, **asdict(self)}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(
        cls,
        text: bytes | str,
        *,
        where: str,
        remedy: str = "export the model again with bge-export",
    ) -> Manifest:
        """Return the manifest in the text of a ``bge.json``.

        Args:
            text: The file's content, in UTF-8.
            where: Path for error messages.
            remedy: How to restore the file, for error messages.

        Raises:
            BundleVersionError: If its format is newer.
            BundleError: If it is not a bundle's manifest, or is damaged.
        """
        data = parse_json(text, where=where, error=BundleError, kind=object, remedy=remedy)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(
                f'{where} is not a bundle manifest: it lacks "format": "{FORMAT}"; {remedy}'
            )
        version = data.get("format_version")
        if not isinstance(version, int):
            raise BundleError(f"{where} has no format_version; {remedy}")
        if version > FORMAT_VERSION:
            raise BundleVersionError(
                f"{where} has format version {version}, and this bge-runtime reads up to "
                f"{FORMAT_VERSION}: run `pip install -U bge-runtime`"
            )
        try:
            read = cls(
                model=_parse_model(data["model"]),
                graphs={key: _parse_graph(value) for key, value in data["graphs"].items()},
                variants=tuple(_parse_variant(value) for value in data["variants"]),
                files={
                    path: File(**_known_fields(File, value))
                    for path, value in data["files"].items()
                },
                provenance=Provenance(**_known_fields(Provenance, data["provenance"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"{where} is damaged ({type(error).__name__}: {error}); {remedy}"
            ) from error
        _check_names(read, where)
        return read


def _check_names(read: Manifest, where: str) -> None:
    """Check that a manifest only names files inside its own folder."""
    graphs = read.graphs.values()
    for name in [*read.files, *(path for graph in graphs for path in (graph.file, graph.weights))]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise BundleError(
                f"{where} names {name!r}, which is outside of the bundle. bge-export writes no "
                "such name: do not use this bundle"
            )


def _known_fields(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return {key: value for key, value in data.items() if key in names}


def _parse_model(data: Mapping[str, Any]) -> Model:
    fields = _known_fields(Model, data)
    ids = tuple(int(number) for number in fields.get("weightless_token_ids", ()))
    prompt = fields.get("prompt")
    if prompt is not None:
        known = _known_fields(RerankerPrompt, prompt)
        prompt = RerankerPrompt(**{**known, "end": tuple(map(str, known["end"]))})
    settings = _known_fields(SentenceTransformersSettings, fields.get("sentence_transformers", {}))
    return Model(
        **{
            **fields,
            "weightless_token_ids": ids,
            "prompt": prompt,
            "sentence_transformers": SentenceTransformersSettings(**settings),
        }
    )


def _parse_graph(data: Mapping[str, Any]) -> Graph:
    fields = _known_fields(Graph, data)
    return Graph(
        **{**fields, "inputs": tuple(fields["inputs"]), "outputs": tuple(fields["outputs"])}
    )


def _parse_variant(data: Mapping[str, Any]) -> Variant:
    fields = _known_fields(Variant, data)
    parity = fields["parity"]
    return Variant(**{**fields, "parity": None if parity is None else parse_parity(parity)})


def parse_parity(data: Mapping[str, Any]) -> Parity | ScoreParity:
    """Return the parity that its ``to_json`` or ``dataclasses.asdict`` wrote."""
    return ScoreParity.from_json(data) if "rank_correlation" in data else Parity.from_json(data)
