"""LangChain: ``BgeEmbeddings`` in the place of ``HuggingFaceBgeEmbeddings``."""

from __future__ import annotations

from typing import Any

from bge_runtime.auto_model import AnyFlagModel
from bge_runtime.integrations import not_installed
from bge_runtime.integrations._models import as_lists, dense_vectors, open_model

try:
    from langchain_core.embeddings import Embeddings
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
except ImportError as error:
    raise not_installed("langchain", error) from error

QUERY_INSTRUCTION = "Represent this question for searching relevant passages: "
QUERY_INSTRUCTION_ZH = "为这个句子生成表示以用于检索相关文章："

_ENCODE_OPTIONS = ("batch_size", "max_length", "normalize_embeddings", "show_progress_bar")


class BgeEmbeddings(BaseModel, Embeddings):
    """BGE for LangChain, with the constructor of ``HuggingFaceBgeEmbeddings``.

    Vectors are that class's: of unit length, in fp32, with its instructions, and with a space
    for each line break. The asynchronous methods compute in a thread.

    Attributes:
        model_name: Bundle, or hub id or folder of a checkpoint; see `bge_runtime.FlagModel`.
        cache_folder: Folder of the hub's cache.
        model_kwargs: ``device`` and what `bge_runtime.FlagAutoModel.from_finetuned` takes.
            ``{"use_fp16": True}`` asks for more speed: 16 bit, where the processor computes
            in it and parity was measured.
        encode_kwargs: ``batch_size``, ``show_progress_bar`` and ``max_length``, which is
            otherwise what the model can read. ``normalize_embeddings`` makes no difference:
            BGE's own folders scale to unit length whatever it says.
        query_instruction: Put before each query; ``""`` for none, which BGE-M3 wants. By
            default that of LangChain, whatever the model; the Chinese one if the model's
            name holds ``-zh``.
        embed_instruction: Put before each document.
        show_progress: Show a progress bar.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_name: str
    cache_folder: str | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    query_instruction: str = QUERY_INSTRUCTION
    embed_instruction: str = ""
    show_progress: bool = False

    _model: AnyFlagModel = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:  # noqa: ARG002
        """Open the model.

        Raises:
            ValueError: If ``encode_kwargs`` holds what is not known.
            BgeError: As `bge_runtime.FlagModel`.
        """
        unknown = sorted(set(self.encode_kwargs) - set(_ENCODE_OPTIONS))
        if unknown:
            raise ValueError(
                f"encode_kwargs holds {', '.join(map(repr, unknown))}, and BgeEmbeddings knows "
                f"{', '.join(_ENCODE_OPTIONS)}. Instructions go into query_instruction and "
                "embed_instruction, all that concerns the model into model_kwargs"
            )
        if "query_instruction" not in self.model_fields_set and "-zh" in self.model_name:
            self.query_instruction = QUERY_INSTRUCTION_ZH
        self._model = open_model(
            self.model_name,
            query_instruction=self.query_instruction,
            **{"cache_dir": self.cache_folder, **self.model_kwargs},
        )

    @property
    def model(self) -> AnyFlagModel:
        """The model behind it; ``model.engine.info`` tells what is in force."""
        return self._model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, behind ``embed_instruction``.

        Returns:
            A list for each text, in their order.
        """
        texts = [self.embed_instruction + text.replace("\n", " ") for text in texts]
        return as_lists(dense_vectors(self._model, texts, **self._options()))

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, behind ``query_instruction``."""
        # People set it on the finished object, too.
        self._model.query_instruction_for_retrieval = self.query_instruction or None
        texts = [text.replace("\n", " ")]
        (vector,) = as_lists(dense_vectors(self._model, texts, queries=True, **self._options()))
        return vector

    def _options(self) -> dict[str, Any]:
        options = {"show_progress_bar": self.show_progress, **self.encode_kwargs}
        options.pop("normalize_embeddings", None)
        return options
