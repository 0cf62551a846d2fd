"""Keys of a ``config.json`` that change what a model computes, and have to be at their default.

What transformers does not know it ignores, and not every version knows the same keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bge_runtime.errors import ExportError

_QUANTISED = "its weights are quantised. Export the checkpoint that it was made from"

_REFUSED = {
    "quantization_config": _QUANTISED,
    "compression_config": _QUANTISED,
    "transformers_weights": "the weights are in another file than model.safetensors. Rename it, "
    "and leave the key out",
    "add_cross_attention": "it is a decoder that attends to an encoder, not an embedder",
    "use_bidirectional_attention": "its tokens attend in both directions, which this version "
    "does for decoders with is_causal false only",
}
"""Keys that have to be absent, null, false or empty, and what another value means."""


def check_config_keys(config: Mapping[str, Any], *, source: str) -> None:
    """Refuse a configuration that asks for what no graph here computes.

    Raises:
        ExportError: If it does.
    """
    for key, meaning in _REFUSED.items():
        if config.get(key):
            raise ExportError(f"{source} has {key} in its config.json: {meaning}")
    try:
        json.dumps(config, allow_nan=False)
    except ValueError as error:
        raise ExportError(
            f"the config.json of {source} holds NaN or Infinity, which JSON has no word for, and "
            "the bundle's would, too. Put the number there that was meant"
        ) from error
