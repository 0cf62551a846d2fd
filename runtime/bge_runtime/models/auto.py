"""``FlagAutoModel``: the right class for a model, by name or by ``model_class``."""

from __future__ import annotations

import enum
from typing import Any

from bge_runtime.bundle import Bundle
from bge_runtime.encoding import resolve_devices
from bge_runtime.errors import BundleError
from bge_runtime.models.encoder import FlagModel
from bge_runtime.models.icl import FlagICLModel
from bge_runtime.models.llm import FlagLLMModel
from bge_runtime.models.m3 import BGEM3FlagModel
from bge_runtime.models.options import Devices, precision_of_flags
from bge_runtime.sources import (
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    DECODER_ONLY_PSEUDO_MOE,
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    MODEL_CLASSES,
    OPENED_BY,
    RERANKER_CLASSES,
    ExportRequest,
    Use,
    find_bundle,
    find_model,
)

AnyFlagModel = FlagModel | BGEM3FlagModel | FlagLLMModel | FlagICLModel

_CLASSES: dict[str, type[AnyFlagModel]] = {
    ENCODER_ONLY_BASE: FlagModel,
    ENCODER_ONLY_M3: BGEM3FlagModel,
    DECODER_ONLY_BASE: FlagLLMModel,
    DECODER_ONLY_ICL: FlagICLModel,
}


class FlagAutoModel:
    """Opens a model with the class that fits it; never instantiated itself."""

    def __init__(self) -> None:
        """Refuse, as FlagEmbedding does.

        Raises:
            EnvironmentError: Always.
        """
        raise OSError("FlagAutoModel is not instantiated; call FlagAutoModel.from_finetuned(MODEL)")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str,
        model_class: str | enum.Enum | None = None,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        devices: Devices = None,
        pooling_method: str | None = None,
        trust_remote_code: bool | None = None,
        query_instruction_format: str | None = None,
        truncate_dim: int | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> AnyFlagModel:
        """Open a model.

        What is not given is taken from the bundle, whatever its folder is called; only the query
        format is that of a known name first, as in FlagEmbedding. A checkpoint is identified by its
        files, and by the name of its repository or folder. It is an error without ``model_class``
        if they contradict each other, or nothing says how the model pools.

        Args:
            model_name_or_path: As in `FlagModel`.
            model_class: ``"encoder-only-base"``, ``"encoder-only-m3"``,
                ``"decoder-only-base"`` or ``"decoder-only-icl"``, or FlagEmbedding's enum
                member of it.
            normalize_embeddings: As in `FlagModel`.
            use_fp16: As in `FlagModel`.
            use_bf16: As in `FlagModel`.
            query_instruction_for_retrieval: As in `FlagModel`.
            devices: As in `FlagModel`.
            pooling_method: As in `FlagModel`.
            trust_remote_code: As in `FlagModel`.
            query_instruction_format: As in `FlagModel`. None takes the model's own, or
                ``"{}{}"`` with ``model_class``, as FlagEmbedding does.
            truncate_dim: As in `FlagModel`.
            revision: As in `FlagModel`.
            cache_dir: As in `FlagModel`.
            **kwargs: Further arguments of the class, such as the examples of
                `FlagICLModel`.

        Raises:
            ValueError: If ``model_class`` is unknown, or not in this version.
            BgeError: As the class itself.
        """
        given = model_class.value if isinstance(model_class, enum.Enum) else model_class
        precision = kwargs.get("precision") or precision_of_flags(
            use_fp16=use_fp16, use_bf16=use_bf16
        )
        request = ExportRequest(
            model_class=given,
            pooling=pooling_method,
            trust_remote_code=bool(trust_remote_code),
            use=Use(
                devices=resolve_devices(devices),
                engine=kwargs.get("engine", "auto"),
                precision=precision,
            ),
        )
        bundle = _find_bundle(model_name_or_path, request, revision=revision, cache_dir=cache_dir)
        if query_instruction_format is None:
            query_instruction_format = _query_format(model_name_or_path, given, bundle)
        model = _class_of(model_name_or_path, given or bundle.manifest.model.model_class)(
            str(bundle.path),  # so that the hub is asked once
            normalize_embeddings=normalize_embeddings,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format=query_instruction_format,
            devices=devices,
            pooling_method=pooling_method,
            truncate_dim=truncate_dim,
            **kwargs,
        )
        model.model_name_or_path = model_name_or_path
        return model


def _find_bundle(
    model_name_or_path: str,
    request: ExportRequest,
    *,
    revision: str | None,
    cache_dir: str | None,
) -> Bundle:
    given = request.model_class
    if given is not None and given not in MODEL_CLASSES:
        raise ValueError(f"unknown model_class {given!r}; known are {', '.join(MODEL_CLASSES)}")
    check_class = _class_of(model_name_or_path, given).check_class if given else _check_embedder
    bundle = Bundle.at(
        find_bundle(
            model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            request=request,
            check_class=check_class,
        )
    )
    _check_embedder(bundle.path.name, bundle.manifest.model.model_class)
    return bundle


def _check_embedder(name: str, model_class: str) -> None:
    """Refuse a reranker, before it is exported or opened.

    Raises:
        BundleError: If it is one.
    """
    if model_class in RERANKER_CLASSES:
        raise BundleError(
            f"{name} is a model of class {model_class}, no embedder. Open it with "
            f"{OPENED_BY[model_class]}, or with FlagAutoReranker"
        )


def _query_format(name: str, model_class: str | None, bundle: Bundle) -> str:
    """Return the format of the known model of that name, or else of the bundle."""
    if model_class is not None:
        return "{}{}"
    model, known = bundle.manifest.model, find_model(name)
    # A name that means another class than the bundle has says nothing about its queries.
    spec = known if known and known.model_class == model.model_class else None
    return (spec or model).query_instruction_format


def _class_of(model: str, model_class: str) -> type[AnyFlagModel]:
    if model_class in _CLASSES:
        return _CLASSES[model_class]
    which = "the pseudo-MoE class" if model_class == DECODER_ONLY_PSEUDO_MOE else "that"
    raise ValueError(
        f"{model} is a model of class {model_class!r}, and {which} is not in this version, which "
        f"runs {', '.join(_CLASSES)}"
    )
