"""``FlagAutoReranker``: the right class for a reranker, by name or by ``model_class``."""

from __future__ import annotations

import enum
from typing import Any

from bge_runtime.bundle import Bundle
from bge_runtime.encoding import resolve_devices
from bge_runtime.errors import BundleError
from bge_runtime.models import precision_of_flags
from bge_runtime.rerankers.decoder import FlagLLMReranker
from bge_runtime.rerankers.encoder import FlagReranker
from bge_runtime.sources import (
    DECODER_CLASSES,
    OPENED_BY,
    RERANKER_CLASSES,
    RERANKER_DECODER,
    RERANKER_ENCODER,
    RERANKER_LAYERWISE,
    RERANKER_LIGHTWEIGHT,
    ExportRequest,
    Use,
    find_bundle,
)

AnyReranker = FlagReranker | FlagLLMReranker

_CLASSES: dict[str, type[AnyReranker]] = {
    RERANKER_ENCODER: FlagReranker,
    RERANKER_DECODER: FlagLLMReranker,
}

_PREFIX = "reranker-"


class FlagAutoReranker:
    """Opens a reranker with the class that fits it; never instantiated itself."""

    def __init__(self) -> None:
        """Refuse, as FlagEmbedding does.

        Raises:
            EnvironmentError: Always.
        """
        raise OSError(
            "FlagAutoReranker is not instantiated; call FlagAutoReranker.from_finetuned(MODEL)"
        )

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str,
        model_class: str | enum.Enum | None = None,
        use_fp16: bool = False,
        trust_remote_code: bool | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> AnyReranker:
        """Open a reranker.

        Args:
            model_name_or_path: As in `FlagModel`.
            model_class: ``"encoder-only-base"`` or ``"decoder-only-base"``, or FlagEmbedding's enum
                member of it. None takes the bundle's; a checkpoint is identified by its files, and
                by the name of its repository or folder.
            use_fp16: As in `FlagReranker`.
            trust_remote_code: As in `FlagModel`.
            revision: As in `FlagModel`.
            cache_dir: As in `FlagModel`.
            **kwargs: Further arguments of the class.

        Raises:
            ValueError: If ``model_class`` is unknown, or not in this version.
            BundleError: If the model is an embedder.
            BgeError: As the class itself.
        """
        given = _full_name(model_class)
        request = ExportRequest(
            model_class=given,
            trust_remote_code=bool(trust_remote_code),
            use=Use(
                devices=resolve_devices(kwargs.get("devices")),
                engine=kwargs.get("engine", "auto"),
                precision=kwargs.get("precision")
                or precision_of_flags(use_fp16=use_fp16, use_bf16=kwargs.get("use_bf16", False)),
            ),
        )
        folder = find_bundle(
            model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            request=request,
            check_class=_CLASSES[given].check_class if given else check_reranker,
        )
        bundle = Bundle.at(folder)
        found = bundle.manifest.model.model_class
        check_reranker(bundle.path.name, found)
        model = _CLASSES[given or found](str(folder), use_fp16=use_fp16, **kwargs)
        model.model_name_or_path = model_name_or_path
        return model


def check_reranker(name: str, model_class: str) -> None:
    """Refuse a model that is no reranker, before it is exported or opened.

    Raises:
        BundleError: If it is none, or of a class that this version does not run.
    """
    if model_class in RERANKER_CLASSES:
        return
    if model_class in (RERANKER_LAYERWISE, RERANKER_LIGHTWEIGHT):
        raise BundleError(f"{name} is a {explain_own_code(model_class)}")
    opens = OPENED_BY.get(model_class, "a newer bge-runtime")
    of_files = (
        ". The files of a decoder do not tell whether it reranks: if it does, open it with "
        "FlagLLMReranker, or export it with bge-export --model-class " + RERANKER_DECODER
    )
    raise BundleError(
        f"{name} is a model of class {model_class}, no reranker. Open it with {opens}, or with "
        f"FlagAutoModel{of_files if model_class in DECODER_CLASSES else ''}"
    )


def explain_own_code(model_class: str) -> str:
    """Return why rerankers of a class are not run here."""
    kind = model_class.rpartition("-")[2]
    runs = ", ".join(name.removeprefix(_PREFIX) for name in RERANKER_CLASSES)
    return (
        f"{kind} reranker, whose layers are computed by code in its checkpoint, which this version "
        f"does not run; it runs {runs}"
    )


def _full_name(model_class: str | enum.Enum | None) -> str | None:
    """Return the name of a class as bundles have it, from FlagEmbedding's.

    Raises:
        ValueError: If it is unknown, or not in this version.
    """
    given = model_class.value if isinstance(model_class, enum.Enum) else model_class
    if given is None:
        return None
    name = given if str(given).startswith(_PREFIX) else f"{_PREFIX}{given}"
    if name in (RERANKER_LAYERWISE, RERANKER_LIGHTWEIGHT):
        raise ValueError(f"model_class {given!r} is that of a {explain_own_code(name)}")
    if name not in _CLASSES:
        known = ", ".join(known.removeprefix(_PREFIX) for known in RERANKER_CLASSES)
        raise ValueError(f"unknown model_class {given!r} of a reranker; known are {known}")
    return name
