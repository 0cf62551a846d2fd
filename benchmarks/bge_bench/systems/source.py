"""Find the checkpoint that a bundle was made from, and check its weights and tokenizer."""

from __future__ import annotations

import contextlib
import importlib.metadata
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bge_bench.errors import BenchError
from bge_bench.systems.base import quiet
from bge_runtime.bundle import Bundle
from bge_runtime.encoding import TextTokenizer
from bge_runtime.errors import ExportError
from bge_runtime.system import file_hash

_COMPARED_TOKENS = 512
"""Tokens of each text that are compared."""


@contextlib.contextmanager
def open_checkpoint(bundle: Bundle, given: Path | None) -> Iterator[Path]:
    """Yield the folder of a bundle's checkpoint.

    It is the given folder, or else the one that the bundle names as its source. Random weights are
    generated again, with the bundle's tokenizer, in a temporary folder.

    Raises:
        BenchError: If there is none, or its weights or tokens are not those of the bundle.
    """
    provenance = bundle.manifest.provenance
    with contextlib.ExitStack() as stack:
        if given is not None:
            folder, advice = given, "pass the checkpoint that the bundle was made from"
        elif provenance.random_seed is not None:
            root = stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-bench-"))
            folder = _make_random(bundle, provenance.random_seed, Path(root))
            made, here = provenance.versions.get("torch"), importlib.metadata.version("torch")
            advice = (
                f"torch {here} makes other random weights than torch {made}, which made the "
                "bundle's; export it again, or pass --checkpoint"
            )
        else:
            folder = _find(bundle)
            advice = "it was changed since; export it again, or pass the old one with --checkpoint"
        _check_weights(bundle, folder, advice)
        _check_tokenizer(bundle, folder, advice)
        yield folder


def _find(bundle: Bundle) -> Path:
    from bge_export.checkpoint import find_checkpoint

    provenance = bundle.manifest.provenance
    try:
        return find_checkpoint(provenance.source, revision=provenance.revision)[0]
    except ExportError as error:
        raise BenchError(
            f"the bundle {bundle.path.name} was made from {provenance.source}, which is not to be "
            f"had here: {error}. Pass --checkpoint DIR"
        ) from error


def _make_random(bundle: Bundle, seed: int, root: Path) -> Path:
    """Write a checkpoint into a folder of the model's name, which tells how it is asked."""
    with quiet():
        from bge_export.synthetic import find_random_model, write_random_checkpoint

        facts = find_random_model(bundle.manifest.provenance.source)
        folder = root / facts.name
        folder.mkdir()
        layers = bundle.manifest.model.layers  # it may have been made with fewer
        write_random_checkpoint(facts, folder, seed=seed, tokenizer=bundle.path, layers=layers)
    return folder


def _check_weights(bundle: Bundle, folder: Path, advice: str) -> None:
    recorded = bundle.manifest.provenance.weights_sha256
    for name, expected in recorded.items():
        path = folder / name
        try:
            found = file_hash.file_sha256(path)
        except OSError as error:
            raise BenchError(
                f"the bundle {bundle.path.name} was made from a checkpoint with a file {name}, and "
                f"{path} cannot be read ({error.strerror}); pass that checkpoint with --checkpoint"
            ) from error
        if found != expected:
            raise BenchError(
                f"{path} does not hold the weights of {bundle.path.name}: its sha256 is "
                f"{found[:12]}…, and the bundle was made from {expected[:12]}…; {advice}"
            )


def _check_tokenizer(bundle: Bundle, folder: Path, advice: str) -> None:
    """Raise an error if a checkpoint makes other tokens: its vectors would be of other texts."""
    with quiet():
        from bge_export.checkpoint.tokenizer import load_tokenizer
        from bge_export.parity_texts import PARITY_TEXTS, TOKENIZER_TEXTS

        texts = (*PARITY_TEXTS, *TOKENIZER_TEXTS)
        expected = load_tokenizer(folder, right_padding=False).encode(
            texts, max_length=_COMPARED_TOKENS
        )
    found = TextTokenizer(bundle.tokenizer_file).encode(texts, max_length=_COMPARED_TOKENS)
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        if ours.tolist() != theirs:
            raise BenchError(
                f"the tokenizer of {folder} is not that of {bundle.path.name}: of {text[:40]!r} it "
                f"makes {theirs[:8]} …, and the bundle {ours[:8].tolist()} …; {advice}"
            )
