"""Check that transformers has loaded exactly the weights in the checkpoint's files.

Graphs are compared with the vectors of that encoder, so no later check would find a weight that
transformers dropped, filled at random or read differently.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from bge_export.checkpoint import (
    Checkpoint,
    SafetensorsReader,
    check_finite,
    is_unused,
    match_weights,
    require_match,
)
from bge_runtime.errors import ExportError
from bge_runtime.sources import HEAD_FILES

_PIECE = 8 << 20
"""Numbers of a pickled tensor that are read at once."""


def check_encoder(
    encoder: Any, checkpoint: Checkpoint, report: Mapping[str, Any], *, reranker: bool = False
) -> None:
    """Refuse an encoder whose weights are not those of its checkpoint.

    Args:
        encoder: The encoder, or the sequence classifier, that transformers loaded, in fp32.
        checkpoint: The checkpoint.
        report: The loading info of transformers.
        reranker: Whether it is a classifier, which reads its pooler and head too.

    Raises:
        ExportError: If the checkpoint has tensors that the encoder does not read, or lacks some
            that it reads; if a tensor has another shape, or holds NaN or infinity; or if
            transformers loaded other values.
    """
    source, weights, reader = checkpoint.source, encoder.state_dict(), _open_weights(checkpoint)
    prefix = encoder.base_model_prefix
    match = match_weights(reader.names(), weights, prefix=prefix, with_head=reranker)
    if not is_own_code(encoder):
        _check_config_keys(encoder, checkpoint)
        require_match(match, weights, source=source)
    else:
        # Custom code may rename weights, so the loading info says what was left out.
        unread, missing = (
            sorted(
                key
                for key in report[kind]
                if (reranker and key in weights) or not is_unused(key.removeprefix(f"{prefix}."))
            )
            for kind in ("unexpected_keys", "missing_keys")
        )
        require_match(replace(match, unread=unread, missing=missing), weights, source=source)
    for own, name in match.found.items():
        shape = tuple(weights[own].shape)
        if reader.shape(name) != shape:
            raise ExportError(
                f"{name} of {source} has the shape {reader.shape(name)}, where its config.json "
                f"calls for {shape}"
            )
    if report["mismatched_keys"]:
        raise ExportError(
            f"{source} holds weights of other shapes than its code has: "
            f"{min(map(str, report['mismatched_keys']))}"
        )
    for own, name in match.found.items():
        if weights[own].is_floating_point():
            _check_values(weights[own], reader, name, source=source)


def is_own_code(encoder: torch.nn.Module) -> bool:
    """Return whether an encoder's code comes from its checkpoint."""
    return not type(encoder).__module__.startswith("transformers.")


def restore_buffers(encoder: Any) -> None:
    """Fill an encoder's buffers that are in no file, as its own code computes them.

    Version 5 of transformers creates models without memory and leaves such buffers uninitialized.
    Its own models fill them later; custom code written for version 4 does not.

    Raises:
        ExportError: If its code fails.
    """
    try:
        with _weights_without_memory():
            fresh = type(encoder)(encoder.config)
    except Exception as error:  # custom code
        raise ExportError(
            f"{type(encoder).__name__} cannot be created: {type(error).__name__}: {error}"
        ) from error
    held, kept = dict(encoder.named_buffers()), encoder.state_dict().keys()
    for name, buffer in fresh.named_buffers():
        if name in held and name not in kept and held[name].shape == buffer.shape:
            held[name].copy_(buffer)


@contextmanager
def _weights_without_memory() -> Iterator[None]:
    register = torch.nn.Module.register_parameter

    def register_on_meta(
        self: torch.nn.Module, name: str, param: torch.nn.Parameter | None
    ) -> None:
        if param is not None:
            param = torch.nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _check_config_keys(encoder: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse configuration keys that only earlier versions of transformers support."""
    relative = any("distance_embedding" in name for name, _ in encoder.named_parameters())
    for key, default, done in (
        ("position_embedding_type", "absolute", relative),
        ("pruned_heads", {}, hasattr(encoder, "_prune_heads")),
    ):
        asked: object = checkpoint.config.get(key) or default
        if asked != default and not done:
            raise ExportError(
                f"the config.json of {checkpoint.source} has {key} {asked!r}, which transformers "
                f"{transformers.__version__} leaves out for {checkpoint.config['model_type']}. "
                "Version 4.57 knows relative_key, relative_key_query and pruned_heads: "
                "`pip install 'transformers<5'`"
            )


class _Reader(Protocol):
    def names(self) -> Collection[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def pieces(self, name: str) -> Iterator[NDArray[Any]]: ...


class _PickleReader:
    """Reads pickled weight files, as `SafetensorsReader` reads safetensors files."""

    def __init__(self, checkpoint: Checkpoint, files: Collection[str]) -> None:
        self._tensors: dict[str, Any] = {}
        for name in files:
            path = checkpoint.folder / name
            # Files of PyTorch before 1.6 cannot be mapped into memory.
            mapped = zipfile.is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            if twice := sorted(self._tensors.keys() & state.keys()):
                raise ExportError(
                    f"{twice[0]} is in {name} and in another file that the index names"
                )
            self._tensors |= state

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        tensor = self._tensors[name]
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise ExportError(
                f"{name} is of type {tensor.dtype}, which quantized weights have. Export the "
                "checkpoint that it was made from"
            )
        for piece in tensor.reshape(-1).split(_PIECE):
            yield piece.float().numpy()


def _open_weights(checkpoint: Checkpoint) -> _Reader:
    files = [name for name in checkpoint.weight_files if name not in HEAD_FILES]
    if all(name.endswith(".safetensors") for name in files):
        return SafetensorsReader(checkpoint.folder, files)
    return _PickleReader(checkpoint, files)


def _check_values(weight: torch.Tensor, reader: _Reader, name: str, *, source: str) -> None:
    held, start = weight.reshape(-1).numpy(), 0
    for piece in reader.pieces(name):
        # Overflow becomes infinity, which is found below.
        with np.errstate(over="ignore"):
            stored = piece.astype(np.float32, copy=False).reshape(-1)
        check_finite(stored, name)
        if not np.array_equal(held[start : start + stored.size], stored):
            raise ExportError(
                f"transformers {transformers.__version__} loads {name} of {source} with other "
                "numbers than the file holds. Export with another version, and please report this"
            )
        start += stored.size
