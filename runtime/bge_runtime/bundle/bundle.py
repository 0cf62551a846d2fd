"""Open a bundle, check its files, and read its reference vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bge_runtime.bundle import manifest
from bge_runtime.bundle.folders import explain_renewal
from bge_runtime.bundle.manifest import Graph, Manifest
from bge_runtime.bundle.reference import PairReference, Reference, load_reference
from bge_runtime.errors import BundleError, BundleIntegrityError, ModelNotFoundError
from bge_runtime.system import check_not_pointer, file_hash, local_path

TOKENIZER_FILE = "tokenizer.json"
PARITY_FILE = "parity.npz"


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

    def reference(self) -> Reference | PairReference:
        """Return PyTorch's outputs for the texts, or a reranker's pairs, in the bundle.

        Raises:
            BundleError: If ``parity.npz`` cannot be read.
        """
        return load_reference(self.path / PARITY_FILE)

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
