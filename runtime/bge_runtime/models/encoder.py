"""``FlagModel``: encoder embedders behind FlagEmbedding's own interface."""

from __future__ import annotations

from typing import Any

from bge_runtime.models.dense import DenseEmbedder
from bge_runtime.models.options import DEFAULT_LENGTH, CallDefaults, Devices, OpenOptions


class FlagModel(DenseEmbedder):
    """A BERT or XLM-R embedder, with the interface of FlagEmbedding 1.4.2's.

    Positional order, defaults and results follow ``FlagEmbedding.FlagModel``; keyword-only
    arguments are our own. Intended differences: the pooling is the bundle's unless it is given, an
    empty list returns an empty array, and each text of a call is computed once.

    Args:
        model_name_or_path: A bundle (a folder that ``bge-export`` wrote, or the Hub ID of one),
            which needs no PyTorch; or the Hub ID or folder of a checkpoint, which is exported into
            the cache the first time.
        normalize_embeddings: Scale vectors to unit length.
        use_fp16: Allow 16 bit where the device computes in it and parity was measured; fp32 is
            used elsewhere. False requires fp32.
        use_bf16: Require bf16; takes precedence over ``use_fp16``.
        query_instruction_for_retrieval: Put before each text of ``encode_queries``.
        query_instruction_format: How instruction and query are joined: two ``{}``.
        devices: Device or devices. None means the CPU.
        pooling_method: ``"cls"`` or ``"mean"``. None takes the bundle's, or what a checkpoint
            says; ``"cls"`` for one that says nothing, such as a fine-tune by FlagEmbedding. It is
            an error if a bundle has another one.
        trust_remote_code: Let an export run code of the checkpoint, in a process of its own. Such
            code never runs in this one.
        cache_dir: Folder of the Hub's cache.
        batch_size: Maximum texts in a batch. Batches are filled by tokens, so most have fewer
            texts; vectors change by rounding only.
        query_max_length: Tokens at which a query is cut, special tokens included.
        passage_max_length: The same for a passage, and for ``encode``.
        convert_to_numpy: False returns torch tensors, if torch is installed.
        truncate_dim: Components to keep, before normalization.
        engine: ``"auto"``, or the name of an engine.
        precision: Name of a precision; takes precedence over ``use_fp16`` and ``use_bf16``.
        threads: Threads to compute with. None means all that the process may use, or
            ``OMP_NUM_THREADS`` if that is fewer.
        revision: Branch, tag or commit on the Hub.
        cuda_graphs: On a GPU with ONNX Runtime, run single texts of up to 64 tokens as CUDA graphs,
            to answer queries one by one. Needs a second copy of weights and working memory on the
            GPU.
        parallel_batches: On a CPU, let each thread compute a batch of its own where there are
            enough texts, which is faster. OpenVINO needs a second copy of the weights for it, and
            starts with a corpus, or after smaller calls, of about 16,000 tokens; False avoids the
            copy.
        **kwargs: ``passage_instruction_for_retrieval`` and ``passage_instruction_format``. As in
            FlagEmbedding, any other becomes an attribute; here it also raises a warning.

    Raises:
        ModelNotFoundError: If there is no bundle and none can be made here; the message says how
            to make it.
        ExportError: If the export fails.
        BundleError: If the model is a decoder, or its bundle is damaged or newer than this package.
        PoolingError: If the bundle pools differently.
        EngineError: If engine, device or precision is not available.
    """

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: Devices = None,
        pooling_method: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        batch_size: int = 256,
        query_max_length: int = DEFAULT_LENGTH,
        passage_max_length: int = DEFAULT_LENGTH,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
        *,
        engine: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        cuda_graphs: bool = False,
        parallel_batches: bool = True,
        **kwargs: Any,
    ) -> None:
        """Open a model; see the class for the arguments."""
        super().__init__(
            model_name_or_path,
            OpenOptions(
                devices=devices,
                use_fp16=use_fp16,
                use_bf16=use_bf16,
                pooling_method=pooling_method,
                trust_remote_code=trust_remote_code,
                cache_dir=cache_dir,
                engine=engine,
                precision=precision,
                threads=threads,
                revision=revision,
                cuda_graphs=cuda_graphs,
                parallel_batches=parallel_batches,
            ),
            CallDefaults(
                normalize_embeddings=normalize_embeddings,
                query_instruction_for_retrieval=query_instruction_for_retrieval,
                query_instruction_format=query_instruction_format,
                batch_size=batch_size,
                query_max_length=query_max_length,
                passage_max_length=passage_max_length,
                truncate_dim=truncate_dim,
            ),
        )
        self.convert_to_numpy = convert_to_numpy
        self._keep_options(kwargs)
