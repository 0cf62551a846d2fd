"""Upload a bundle to the Hub, where any machine can use it without PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bge_runtime.bundle import FILE_NAME, Bundle, Manifest
from bge_runtime.errors import BgeError, ExportError
from bge_runtime.sources import OPENED_BY, RERANKER_CLASSES, format_error, is_hub_id

_CARD = "README.md"


def check_target(repo: str) -> None:
    """Check that a bundle can be pushed to ``OWNER/NAME``, before the long work starts.

    Raises:
        ExportError: If the name is invalid, nobody is logged in, the Hub cannot be reached, or the
            repository holds a checkpoint.
    """
    if not is_hub_id(repo):
        raise ExportError(f"--push-to-hub takes OWNER/NAME, not {repo!r}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _explain_errors(f"cannot push to {repo}"):
        hub = HfApi()
        hub.whoami()
        try:
            there = hub.list_repo_files(repo)
        except RepositoryNotFoundError:
            return
    weights = [name for name in there if name.endswith((".safetensors", ".bin"))]
    if weights and FILE_NAME not in there:
        raise ExportError(
            f"{repo} holds a checkpoint ({weights[0]}), whose configuration a bundle's would "
            "replace; push to a new repository"
        )


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a bundle in one commit. It replaces one that is already there.

    A model card is added if the repository has none. Graphs of an earlier bundle are deleted; all
    other files stay.

    Args:
        folder: The bundle.
        repo: ``OWNER/NAME``; created if it does not exist.
        private: Whether a created repository is private.

    Returns:
        Address of the commit.

    Raises:
        BundleError: If the bundle is damaged.
        ExportError: If the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    manifest = Bundle.open(folder).manifest
    names = [FILE_NAME, *manifest.files]
    again = f"the bundle itself is ready; `hf upload {repo} {folder}` tries again"
    with _explain_errors(f"cannot push to {repo} ({again})"):
        hub = HfApi()
        hub.create_repo(repo, private=private, exist_ok=True)
        there = hub.list_repo_files(repo)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names
        ]
        operations += [
            CommitOperationDelete(path_in_repo=name)
            for name in there
            if FILE_NAME in there and name.startswith(("onnx/", "openvino/")) and name not in names
        ]
        if _CARD not in there:
            card = model_card(manifest, repo).encode()
            operations.append(CommitOperationAdd(path_in_repo=_CARD, path_or_fileobj=card))
        commit = hub.create_commit(
            repo, operations, commit_message=f"Bundle of {manifest.model.name} for bge-runtime"
        )
    return str(commit.commit_url)


def model_card(manifest: Manifest, repo: str) -> str:
    """Return the model card of a bundle: what it is, how close to PyTorch, how to use it."""
    source = manifest.provenance.source
    base = f"base_model: {source}\n" if is_hub_id(source) else ""
    reranker = manifest.model.model_class in RERANKER_CLASSES
    outputs = "scores" if reranker else "vectors"
    warning = (
        ""
        if manifest.provenance.random_seed is None
        else f"**Its weights are random: it is for benchmarks, and its {outputs} mean "
        "nothing.**\n\n"
    )
    name = OPENED_BY[manifest.model.model_class] if reranker else "FlagModel"
    use = (
        f'scores = {name}("{repo}").compute_score([("a query", "a passage")])'
        if reranker
        else f'vectors = {name}("{repo}").encode(["a text"])  # (1, {manifest.model.dim}), float32'
    )
    task = "text-ranking" if reranker else "feature-extraction"
    tags = "cross-encoder" if reranker else "sentence-similarity"
    figure = "largest difference from" if reranker else "smallest cosine to"
    rows = "\n".join(
        f"| {variant.name} | {variant.engine} | {variant.precision} | "
        f"{variant.parity.summary() if variant.parity else 'not measured'} |"
        for variant in manifest.variants
    )
    return f"""---
library_name: bge-runtime
pipeline_tag: {task}
{base}tags: [onnx, openvino, sentence-transformers, {tags}]
---

# {manifest.model.name}, exported

{warning}A bundle made by `bge-export` from `{source}`. It runs without PyTorch:

```python
from bge_runtime import {name}

{use}
```

| variant | engine | precision | {figure} PyTorch's fp32 {outputs} |
|---|---|---|---|
{rows}

`bge-runtime doctor --verify {repo}` measures them again, on your machine.
"""


@contextlib.contextmanager
def _explain_errors(what: str) -> Iterator[None]:
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ExportError(
            "--push-to-hub needs a login: log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except BgeError:
        raise
    except Exception as error:  # the HTTP library depends on huggingface_hub's version
        raise ExportError(f"{what}: {format_error(error)}") from error
