"""Bundles whose files are symbolic links, as in the Hugging Face Hub's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bge_runtime.bundle import Bundle, Graph
from bge_runtime.errors import BundleError


@contextmanager
def graph_beside_weights(bundle: Bundle, graph: Graph, *, follows_graph: bool) -> Iterator[Path]:
    """Yield the path of an ONNX graph with its weights where an engine agrees to read them.

    Engines refuse weights outside the graph's folder, since an untrusted graph might refer to any
    file. Here the manifest's hashes protect from that. While the engine opens the graph, the
    weights have a hard link, which takes no space, beside a copy of the graph.

    Args:
        bundle: The bundle.
        graph: One of its ONNX graphs.
        follows_graph: Whether the engine also reads weights in the folder that the graph
            itself is a link into, as ONNX Runtime does.

    Raises:
        BundleError: If the weights are a link, and there can be no hard link beside their file.
    """
    path, weights = bundle.path / graph.file, bundle.path / graph.weights
    real = weights.resolve()
    allowed = [path.parent.resolve(), *([path.resolve().parent] if follows_graph else [])]
    if any(real.is_relative_to(folder) for folder in allowed):
        yield path
        return
    try:
        folder = Path(tempfile.mkdtemp(prefix=".bge-runtime-", dir=real.parent))
    except OSError as error:
        raise _cannot_link(weights, real, error) from error
    try:
        try:
            os.link(real, folder / weights.name)
            shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise _cannot_link(weights, real, error) from error
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_link(weights: Path, real: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{weights} is a link to {real}, out of the bundle, which engines do not follow, and no "
        f"hard link can be made there ({error.strerror}). Copy the bundle with what its links "
        "lead to (`cp -rL`, or `hf download` with --local-dir)"
    )
