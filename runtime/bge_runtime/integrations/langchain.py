"""LangChain: ``BgeEmbeddings`` and ``BgeReranker``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bge_runtime.encoding import as_text, as_text_list, resolve_devices
from bge_runtime.integrations import not_installed
from bge_runtime.integrations._arguments import (
    Check,
    any_value,
    device_name,
    no_value,
    one_of,
)
from bge_runtime.integrations._models import (
    PREFIX,
    as_lists,
    default_prompt,
    dense_vectors,
    open_model,
)
from bge_runtime.integrations._rerankers import open_reranker
from bge_runtime.models import AnyFlagModel
from bge_runtime.rerankers import AnyReranker

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
except ImportError as error:
    raise not_installed("langchain", error) from error

QUERY_INSTRUCTION = "Represent this question for searching relevant passages: "
QUERY_INSTRUCTION_ZH = "为这个句子生成表示以用于检索相关文章："

_ENCODE_OPTIONS = ("batch_size", "max_length", "normalize_embeddings", "show_progress_bar")

_INSTRUCTIONS = "goes, as a text, into query_instruction and embed_instruction"
_IN_MODEL_KWARGS = "goes into model_kwargs"

_ACCEPTED: dict[str, tuple[Check, str]] = {
    "chunk_size": (any_value, ""),
    "convert_to_numpy": (any_value, ""),
    "convert_to_tensor": (any_value, ""),
    "device": (any_value, ""),  # compared with the model's
    "output_value": (one_of("sentence_embedding"), "has to be 'sentence_embedding'"),
    "pool": (no_value, "has no counterpart; several devices go into model_kwargs"),
    "precision": (one_of("float32"), "has to be 'float32'; arithmetic is chosen in model_kwargs"),
    "prompt": (one_of(), _INSTRUCTIONS),
    "prompt_name": (one_of(), _INSTRUCTIONS),
    "truncate_dim": (one_of(), _IN_MODEL_KWARGS),
}
"""Further arguments of ``SentenceTransformer.encode``: which values change nothing, and the error
for others."""


class BgeEmbeddings(BaseModel, Embeddings):
    """BGE for LangChain, with the constructor of ``HuggingFaceBgeEmbeddings``.

    Vectors equal that class's: in fp32, with its instructions, a space for each line break, and
    the settings of the model's sentence-transformers files. The asynchronous methods compute in a
    thread.

    Attributes:
        model_name: A bundle, or a checkpoint's folder or Hub ID; see `bge_runtime.FlagModel`.
        cache_folder: Folder of the hub's cache.
        model_kwargs: ``device`` and arguments of `bge_runtime.FlagAutoModel.from_finetuned`.
            ``{"use_fp16": True}`` computes in 16 bits, if the processor supports it and parity
            was measured.
        encode_kwargs: ``batch_size``, ``show_progress_bar``, ``max_length`` (default: the model
            folder's setting) and ``normalize_embeddings``. The last one has no effect on BGE's
            own models, whose settings always scale to unit length.
        query_instruction: Put before each query; ``""`` for none, as BGE-M3 needs. The default is
            LangChain's for all models, in Chinese if the model's name contains ``-zh``.
        embed_instruction: Put before each document.
        show_progress: Show a progress bar.
        multi_process: Must be False.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_name: str
    cache_folder: str | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    query_instruction: str = QUERY_INSTRUCTION
    embed_instruction: str = ""
    show_progress: bool = False
    multi_process: bool = False

    _model: AnyFlagModel = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:  # noqa: ARG002
        """Open the model.

        Raises:
            ValueError: If an argument would have no effect.
            BgeError: As `bge_runtime.FlagModel`.
        """
        if self.multi_process:
            raise ValueError(
                "multi_process=True is not supported: one process uses all cores. Pass several "
                "devices as devices=[...] in model_kwargs"
            )
        for name, value in self.encode_kwargs.items():
            known = name in _ACCEPTED or name in _ENCODE_OPTIONS
            accepted, advice = _ACCEPTED.get(name, (any_value, "is unknown"))
            if not known or (value is not None and not accepted(value)):
                raise ValueError(
                    f"encode_kwargs holds {name!r}, which {advice}: BgeEmbeddings accepts "
                    f"{', '.join(_ENCODE_OPTIONS)}. Instructions go into query_instruction and "
                    "embed_instruction, arguments of the model into model_kwargs"
                )
        if "query_instruction" not in self.model_fields_set and "-zh" in self.model_name:
            self.query_instruction = QUERY_INSTRUCTION_ZH
        self._model = open_model(
            self.model_name,
            query_instruction=self.query_instruction,
            **{
                "cache_dir": self.cache_folder,
                "query_instruction_format": PREFIX,
                **self.model_kwargs,
            },
        )
        device = device_name(self.encode_kwargs.get("device"))
        if device is not None and resolve_devices(device) != self._model.target_devices:
            raise ValueError(
                f"encode_kwargs holds device={device!r}, and the model was opened on "
                f"{', '.join(self._model.target_devices)}; pass it in model_kwargs"
            )

    @property
    def model(self) -> AnyFlagModel:
        """The model behind it; ``model.engine.info`` tells what is in force."""
        return self._model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, after ``embed_instruction``.

        Returns:
            A list for each text, in order.

        Raises:
            TypeError: If they are not a list of strings.
        """
        texts = as_text_list(texts, name="texts")
        before = default_prompt(self._model) + self.embed_instruction
        texts = [before + text.replace("\n", " ") for text in texts]
        return as_lists(dense_vectors(self._model, texts, prompt="", **self._options()))

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, after ``query_instruction``.

        Raises:
            TypeError: If it is not a string.
        """
        text = as_text(text, name="text")
        # Users may also change it after the model is opened.
        instruction = default_prompt(self._model) + self.query_instruction
        self._model.query_instruction_for_retrieval = instruction or None
        texts = [text.replace("\n", " ")]
        (vector,) = as_lists(dense_vectors(self._model, texts, queries=True, **self._options()))
        return vector

    def _options(self) -> dict[str, Any]:
        given = {name: self.encode_kwargs[name] for name in _ENCODE_OPTIONS
                 if name in self.encode_kwargs}  # fmt: skip
        normalize = bool(given.pop("normalize_embeddings", False))
        return {"show_progress_bar": self.show_progress, "normalize": normalize, **given}


class BgeReranker(BaseDocumentCompressor):
    """A reranker for LangChain, such as for its ``ContextualCompressionRetriever``.

    It computes in fp32 by default, and replaces ``CrossEncoderReranker`` with a
    ``HuggingFaceCrossEncoder``. The asynchronous method computes in a thread.

    Attributes:
        model_name: A bundle, or a checkpoint's folder or Hub ID; see `bge_runtime.FlagReranker`.
        top_n: Documents that are returned, best first; None for all.
        normalize: Give scores between 0 and 1, the sigmoid of the model's.
        max_length: Tokens that a query and a document together are cut to; None for all that the
            model reads.
        cache_folder: Folder of the hub's cache.
        model_kwargs: ``device`` and arguments of `bge_runtime.FlagAutoReranker.from_finetuned`.
            ``{"use_fp16": True}`` computes in 16 bits, if the processor supports it and parity
            was measured.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_name: str
    top_n: int | None = Field(default=3, ge=1)
    normalize: bool = True
    max_length: int | None = Field(default=None, ge=1)
    cache_folder: str | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    _model: AnyReranker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:  # noqa: ARG002
        """Open the model.

        Raises:
            ValueError: If an argument would have no effect.
            BgeError: As `bge_runtime.FlagReranker`.
        """
        self._model = open_reranker(
            self.model_name,
            normalize=self.normalize,
            max_length=self.max_length,
            cache_dir=self.cache_folder,
            model_kwargs=self.model_kwargs,
        )

    @property
    def model(self) -> AnyReranker:
        """The model behind it; ``model.engine.info`` tells what is in force."""
        return self._model

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> Sequence[Document]:
        """Sort documents by how well they answer a query.

        Returns:
            Copies of the best ``top_n``, with their scores as ``relevance_score`` in the metadata.

        Raises:
            TypeError: If the query, or the content of a document, is not a string.
        """
        ranked = self._model.rerank(
            query, [document.page_content for document in documents], self.top_n
        )
        return [
            documents[each.index].model_copy(
                update={
                    "metadata": {
                        **documents[each.index].metadata,
                        "relevance_score": each.score,
                    }
                }
            )
            for each in ranked
        ]
