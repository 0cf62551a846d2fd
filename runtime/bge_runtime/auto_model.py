"""``FlagAutoModel``: the right class for a model, by name or by ``model_class``."""

from __future__ import annotations

import enum
from typing import Any

from bge_runtime.bundle import Bundle
from bge_runtime.errors import ModelNotFoundError
from bge_runtime.flag_model import Devices, FlagModel
from bge_runtime.registry import ENCODER_ONLY_BASE, MODEL_CLASSES, find_model

_CLASSES: dict[str, type[FlagModel]] = {ENCODER_ONLY_BASE: FlagModel}


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
        **kwargs: Any,
    ) -> FlagModel:
        """Open a model.

        What is not given is what the bundle says of itself, whatever its folder is called;
        only the query format goes by a known name first, as in FlagEmbedding.

        Args:
            model_name_or_path: Folder that ``bge-export`` wrote.
            model_class: ``"encoder-only-base"``, or FlagEmbedding's enum member of it.
            normalize_embeddings: As in `FlagModel`.
            use_fp16: As in `FlagModel`.
            use_bf16: As in `FlagModel`.
            query_instruction_for_retrieval: As in `FlagModel`.
            devices: As in `FlagModel`.
            pooling_method: As in `FlagModel`.
            trust_remote_code: Taken for compatibility.
            query_instruction_format: As in `FlagModel`. None takes the model's own, or
                ``"{}{}"`` with ``model_class``, as FlagEmbedding does.
            truncate_dim: As in `FlagModel`.
            **kwargs: Further arguments of the class.

        Raises:
            ValueError: If ``model_class`` is unknown, or not in this version.
            BgeError: As the class itself.
        """
        given = model_class.value if isinstance(model_class, enum.Enum) else model_class
        if given is not None and given not in MODEL_CLASSES:
            raise ValueError(f"unknown model_class {given!r}; known are {', '.join(MODEL_CLASSES)}")
        facts = find_model(model_name_or_path)
        # No use in telling how to export what this version cannot run.
        expected = given or (facts.model_class if facts else ENCODER_ONLY_BASE)
        try:
            # The class opens it, and hashes its files: once is enough.
            model = Bundle.at(model_name_or_path).manifest.model
        except ModelNotFoundError:
            if expected in _CLASSES:
                raise
            raise _not_in_this_version(model_name_or_path, expected) from None
        chosen = given or model.model_class
        if chosen not in _CLASSES:
            raise _not_in_this_version(model_name_or_path, chosen)
        query_format = (facts or model).query_instruction_format if given is None else "{}{}"
        return _CLASSES[chosen](
            model_name_or_path,
            normalize_embeddings=normalize_embeddings,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format=(
                query_format if query_instruction_format is None else query_instruction_format
            ),
            devices=devices,
            pooling_method=pooling_method,
            trust_remote_code=bool(trust_remote_code),
            truncate_dim=truncate_dim,
            **kwargs,
        )


def _not_in_this_version(model: str, model_class: str) -> ValueError:
    return ValueError(
        f"{model} is a model of class {model_class!r}, and this version runs "
        f"{', '.join(_CLASSES)} only"
    )
