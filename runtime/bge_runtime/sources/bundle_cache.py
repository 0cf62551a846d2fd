"""The cache of bundles that were exported on demand."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from bge_runtime._version import __version__
from bge_runtime.bundle import FORMAT_VERSION, Bundle
from bge_runtime.errors import BgeError, BundleError, ExportError, ModelNotFoundError
from bge_runtime.sources.model_classes import RERANKER_CLASSES
from bge_runtime.system import cache_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What a cached bundle was made of, except for its pooling.

    Attributes:
        name: Name of the checkpoint.
        content: Its commit on the hub, or the hashes of its files.
        model_class: FlagEmbedding's class; None if unknown.
        graphs: The exporter's options for the graphs.
    """

    name: str
    content: str
    model_class: str | None
    graphs: tuple[str, ...]

    def folder(self, pooling: str | None) -> Path:
        """Return the folder of the bundle with a pooling, whether or not it exists.

        Args:
            pooling: The pooling that was asked for; None for the model's own.

        Raises:
            ExportError: If there is no folder for the cache.
        """
        # That of embedders' bundles is still the first one.
        version = FORMAT_VERSION if self.model_class in RERANKER_CLASSES else 1
        made_of = [
            self.content, self.model_class, pooling, __version__, version, *self.graphs
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        try:
            return cache_folder() / "bundles" / f"{self.name}-{key}"
        except OSError as error:
            raise ExportError(f"{self.name} is a checkpoint, and {error}") from error

    def find(self, pooling: str | None) -> Path | None:
        """Return the folder of a complete bundle with this pooling; None if there is none.

        A bundle with the model's own pooling serves as well if that is the one asked for.
        """
        for asked in dict.fromkeys((None, pooling)):
            bundle = open_complete_bundle(self.folder(asked))
            if bundle is not None and pooling in (None, bundle.manifest.model.pooling):
                return bundle.path
        return None


def open_complete_bundle(folder: Path) -> Bundle | None:
    """Open a cached bundle; None if it is missing or damaged and has to be exported.

    Changed files are found later, when the bundle is opened for use.
    """
    try:
        bundle = Bundle.at(folder)
        for name, file in bundle.manifest.files.items():
            if (folder / name).stat().st_size != file.size_bytes:
                raise BundleError(f"{folder / name} is cut short")
    except ModelNotFoundError:
        return None
    except (BgeError, OSError) as error:
        logger.warning("ignoring the damaged bundle %s in the cache: %s", folder, error)
        return None
    return bundle
