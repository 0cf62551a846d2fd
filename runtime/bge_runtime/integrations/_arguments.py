"""Arguments of ``SentenceTransformer`` that users of other tools pass along.

An argument that changes nothing here is dropped. Any other one raises an error that says what to
pass instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Check = Callable[[Any], bool]
"""Returns whether a value changes nothing."""


def any_value(value: Any) -> bool:  # noqa: ARG001
    """Return True for every value."""
    return True


def one_of(*values: Any) -> Check:
    """Return a check that accepts these values."""
    return lambda value: any(value is known or value == known for known in values)


def no_value(value: Any) -> bool:
    """Return whether a value is empty."""
    return not value


def _float32(value: Any) -> bool:
    return str(value).removeprefix("torch.") in ("float32", "float")


_FP16 = 'pass {"use_fp16": True}, which runs the fastest precision with verified parity'
_OURS = "the bundle has its own graphs, model and tokenizer; leave it out"

_LOADING_OPTIONS: dict[str, tuple[Check, str]] = {
    "attn_implementation": (any_value, ""),
    "dtype": (_float32, _FP16),
    "torch_dtype": (_float32, _FP16),
    "provider": (one_of("CPUExecutionProvider"), 'pass {"device": "cuda"}'),
    "file_name": (no_value, _OURS),
    "export": (no_value, _OURS),
}

_OPTIONS: dict[str, tuple[Check, str]] = {
    **_LOADING_OPTIONS,
    "backend": (one_of("torch", "onnx"), 'pass {"engine": "openvino"}'),
    "config_kwargs": (no_value, _OURS),
    "default_prompt_name": (no_value, "instructions have arguments of their own"),
    "model_card_data": (any_value, ""),
    "modules": (no_value, _OURS),
    "processor_kwargs": (no_value, _OURS),
    "prompts": (no_value, "instructions have arguments of their own"),
    "similarity_fn_name": (any_value, ""),
    "token": (one_of(True, False), "set the environment variable HF_TOKEN"),
    "tokenizer_kwargs": (no_value, _OURS),
    "use_auth_token": (one_of(True, False), "set the environment variable HF_TOKEN"),
}
"""Known arguments: which values change nothing, and what to pass instead of others."""


def drop_foreign_options(options: dict[str, Any], model_name: str) -> dict[str, Any]:
    """Return options without the arguments of ``SentenceTransformer`` that change nothing.

    Raises:
        ValueError: If an argument would change something.
    """
    kept = {}
    for name, value in options.items():
        if name == "model_kwargs" and isinstance(value, Mapping | None):
            for inner, given in (value or {}).items():
                _check_no_effect(
                    f"model_kwargs.{inner}", given, _LOADING_OPTIONS.get(inner, (no_value, _OURS))
                )
        elif name == "local_files_only":
            # It has no effect on a local folder.
            check: Check = any_value if Path(model_name).expanduser().exists() else no_value
            _check_no_effect(name, value, (check, "set the environment variable HF_HUB_OFFLINE=1"))
        elif name in _OPTIONS:
            _check_no_effect(name, value, _OPTIONS[name])
        else:
            kept[name] = value
    if "cache_folder" in kept:
        kept.setdefault("cache_dir", kept.pop("cache_folder"))
    if "device" in kept:
        kept.setdefault("devices", device_name(kept.pop("device")))
    return kept


def _check_no_effect(name: str, value: Any, rule: tuple[Check, str]) -> None:
    check, advice = rule
    if value is not None and not check(value):
        raise ValueError(
            f"{name}={value!r} is an argument of SentenceTransformer, and would have no effect "
            f"here: {advice}"
        )


def device_name(device: Any) -> Any:
    """Return the name of a ``torch.device``; any other value unchanged."""
    return str(device) if type(device).__module__ == "torch" else device
