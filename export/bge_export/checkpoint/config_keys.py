"""Keys of a ``config.json`` that change what a model computes and must have their default.

transformers ignores keys that it does not know, and versions know different keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bge_runtime.errors import ExportError

_QUANTIZED = "its weights are quantized. Export the checkpoint that it was made from"

_REFUSED = {
    "quantization_config": _QUANTIZED,
    "compression_config": _QUANTIZED,
    "transformers_weights": "the weights are in another file than model.safetensors. Rename it, "
    "and leave the key out",
    "add_cross_attention": "it is a decoder that attends to an encoder, not an embedder",
    "use_bidirectional_attention": "its tokens attend in both directions, which this version "
    "does for decoders with is_causal false only",
}
"""Keys that must be absent, null, false or empty, and the meaning of another value."""


def check_config_keys(config: Mapping[str, Any], *, source: str) -> None:
    """Refuse a configuration that the graphs here do not implement.

    Raises:
        ExportError: If it has such a key, or NaN or infinity.
    """
    for key, meaning in _REFUSED.items():
        if config.get(key):
            raise ExportError(f"{source} has {key} in its config.json: {meaning}")
    try:
        json.dumps(config, allow_nan=False)
    except ValueError as error:
        raise ExportError(
            f"the config.json of {source} holds NaN or Infinity, which is not valid JSON. Replace "
            "it by the number that was meant"
        ) from error
