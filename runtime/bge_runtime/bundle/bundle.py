"""Open a bundle, check its files, and read its reference vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import manifest
from bge_runtime.bundle.folders import explain_renewal
from bge_runtime.bundle.graph_io import HEAD_OUTPUTS
from bge_runtime.bundle.manifest import Graph, Manifest
from bge_runtime.errors import BundleError, BundleIntegrityError, ModelNotFoundError
from bge_runtime.system import check_not_pointer, file_hash, local_path

TOKENIZER_FILE = "tokenizer.json"
PARITY_FILE = "parity.npz"

COLBERT_TOKENS = 64
"""Longest text, in tokens, whose ColBERT vectors are kept as a reference."""


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle.

    Attributes:
        path: Absolute path of its folder.
        manifest: Content of its ``bge.json``.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle and check that its files are complete and unchanged.

        The size of every file is checked. Graphs and small files are hashed each time, weights
        once per file (see `bge_runtime.system.file_hash`).

        Raises:
            BundleIntegrityError: If a file is missing, short or changed.
            BundleError: As `at`.
            ModelNotFoundError: As `at`.
        """
        bundle = cls.at(path)
        bundle.check_files()
        return bundle

    @classmethod
    def at(cls, path: str | Path) -> Bundle:
        """Read a bundle's manifest, without checking its other files.

        Raises:
            ModelNotFoundError: If there is no bundle at ``path``.
            BundleVersionError: If it was written by a newer bge-runtime.
            BundleError: If its manifest is damaged.
        """
        # Absolute, so that a later change of directory has no effect.
        folder = local_path(path, error=ModelNotFoundError)
        manifest_path = folder / manifest.FILE_NAME
        try:
            content = manifest_path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ModelNotFoundError(
                f"no bundle at {str(path)!r}: {folder} holds no {manifest.FILE_NAME}"
            ) from None
        except OSError as error:
            raise BundleError(f"cannot read {manifest_path}: {error.strerror}") from error
        return cls(
            folder,
            Manifest.from_json(content, where=str(manifest_path), remedy=explain_renewal(folder)),
        )

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer's file."""
        return self.path / TOKENIZER_FILE

    def graph(self, key: str) -> Graph:
        """Return the graph with a key.

        Raises:
            BundleError: If the manifest does not describe it.
        """
        try:
            return self.manifest.graphs[key]
        except KeyError:
            raise BundleError(
                f"{self.path / manifest.FILE_NAME} names a graph {key!r} that it does not "
                f"describe; {explain_renewal(self.path)}"
            ) from None

    def reference(self) -> Reference:
        """Return PyTorch's vectors of the texts in the bundle.

        Raises:
            BundleError: If ``parity.npz`` cannot be read.
        """
        return Reference.load(self.path / PARITY_FILE)

    def check_files(self, *, hash_weights: bool = False) -> None:
        """Check that every file exists and is the one that the manifest describes.

        Args:
            hash_weights: Hash weights again if this machine has hashed them before.

        Raises:
            BundleIntegrityError: If one is missing, short or changed.
        """
        weights = {graph.weights for graph in self.manifest.graphs.values()}
        unlisted = weights | {graph.file for graph in self.manifest.graphs.values()}
        unlisted -= set(self.manifest.files)
        if unlisted:
            raise BundleIntegrityError(
                f"{self.path / manifest.FILE_NAME} lists no size and hash for "
                f"{', '.join(sorted(unlisted))}; {explain_renewal(self.path)}"
            )
        for name, expected in self.manifest.files.items():
            path = self.path / name
            try:
                size = path.stat().st_size
                if size != expected.size_bytes:
                    check_not_pointer(path, error=BundleIntegrityError)
                    raise BundleIntegrityError(
                        f"{path} has {size:,} bytes and should have "
                        f"{expected.size_bytes:,}; {explain_renewal(self.path)}"
                    )
                once = name in weights and not hash_weights
                sha256 = (file_hash.remembered_sha256 if once else file_hash.file_sha256)(path)
            except FileNotFoundError:
                what = (
                    f"a link to {path.readlink()}, which does not exist"
                    if path.is_symlink()
                    else "missing"
                )
                raise BundleIntegrityError(
                    f"{path} is {what}; {explain_renewal(self.path)}"
                ) from None
            except OSError as error:
                raise BundleIntegrityError(f"cannot read {path}: {error.strerror}") from error
            if sha256 != expected.sha256:
                raise BundleIntegrityError(
                    f"{path} has changed since it was exported (its sha256 is {sha256[:12]}… "
                    f"and should be {expected.sha256[:12]}…); {explain_renewal(self.path)}"
                )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Tokenised texts with PyTorch's fp32 vectors, to measure parity with.

    Attributes:
        texts: The texts themselves.
        token_ids: Their tokens, special tokens included. One int64 array per text.
        vectors: PyTorch's pooled vectors, not normalised. Shape: ``(texts, dim)``.
        token_weights: For M3 models, the weights of the tokens of all texts, concatenated.
            Shape: ``(tokens,)``.
        colbert_vecs: For M3 models, the vectors of all tokens except each text's first,
            concatenated. Only texts of at most `COLBERT_TOKENS` tokens, since all would take tens
            of megabytes. Shape: ``(tokens, colbert_dim)``.
    """

    texts: tuple[str, ...]
    token_ids: tuple[NDArray[np.int64], ...]
    vectors: NDArray[np.float32]
    token_weights: NDArray[np.float32] | None = None
    colbert_vecs: NDArray[np.float32] | None = None

    def save(self, path: Path) -> None:
        """Write ``parity.npz``.

        Raises:
            OSError: If it cannot be written.
        """
        np.savez(
            path,
            texts=np.frombuffer("\0".join(self.texts).encode(), dtype=np.uint8),
            tokens=np.concatenate(self.token_ids).astype(np.int32),
            lengths=np.array([len(ids) for ids in self.token_ids], dtype=np.int32),
            vectors=self.vectors.astype(np.float32),
            **{name: array for name in HEAD_OUTPUTS if (array := getattr(self, name)) is not None},
        )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read ``parity.npz``.

        Raises:
            BundleError: If it cannot be read.
        """
        import zipfile

        try:
            # NumPy does not close a damaged file.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                ends = np.cumsum(data["lengths"])[:-1]
                tokens = data["tokens"].astype(np.int64)
                return cls(
                    texts=tuple(data["texts"].tobytes().decode().split("\0")),
                    token_ids=tuple(np.split(tokens, ends)),
                    vectors=data["vectors"],
                    **{name: data[name] for name in HEAD_OUTPUTS if name in data},
                )
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"cannot read {path}: {error}; {explain_renewal(path.parent)}"
            ) from error
