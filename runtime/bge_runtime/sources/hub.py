"""The Hugging Face Hub: recognise its IDs, look into repositories, and download bundles.

huggingface_hub handles ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_TOKEN`` and its
other settings. It is imported on first use, since a local bundle does not need it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from bge_runtime.bundle import FILE_NAME, Bundle
from bge_runtime.errors import HubError
from bge_runtime.sources.hub_errors import explain_hub_error, translate_hub_errors
from bge_runtime.sources.identity import IDENTIFYING_FILES

logger = logging.getLogger(__name__)

_CONFIG = "config.json"

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
_HUB_URL = re.compile(
    r"\s*(?:https?://[^/]+/|(?:www\.)?huggingface\.co/|hf://)?(?:models/)?"
    rf"({_HUB_ID.pattern}?)(?:\.git)?(?:/|/(?:tree|blob|resolve)/.*)?\s*",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A hub repository at one commit.

    Attributes:
        commit: Its full hash.
        folder: Its folder in the hub's cache. It holds the whole bundle, or the files that
            identify a checkpoint.
        is_bundle: Whether it is a bundle.
    """

    commit: str
    folder: Path
    is_bundle: bool


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``OWNER/NAME``, in characters that the hub allows."""
    return _HUB_ID.fullmatch(name) is not None


def extract_hub_id(name: str) -> str | None:
    """Return the Hub ID in a URL or before a trailing slash; None if there is none.

    Args:
        name: Neither a Hub ID nor an existing path.
    """
    match = _HUB_URL.fullmatch(name)
    return match and match[1]


def find_snapshot(
    repo: str, *, revision: str | None = None, cache_dir: str | None = None
) -> Snapshot:
    """Return what a repository is, and download it if it is a bundle.

    Files in the hub's cache are not downloaded again. They are also used if the hub does not
    answer. Offline, no request is made.

    Args:
        repo: ``OWNER/NAME``.
        revision: Branch, tag or commit.
        cache_dir: Folder of the hub's cache; None for its default.

    Raises:
        HubError: If the repository is missing, or the hub cannot be reached and the cache does
            not hold it.
        BundleError: If it is a bundle with a damaged manifest, or a newer one.
    """
    from huggingface_hub import snapshot_download

    with translate_hub_errors(repo, revision):
        found = _fetch_first_file(repo, revision, cache_dir)
    folder = found.parent
    if found.name != FILE_NAME:
        return Snapshot(commit=folder.name, folder=folder, is_bundle=False)
    names = list(Bundle.at(folder).manifest.files)
    if _missing(folder, names):
        with translate_hub_errors(repo, revision):
            snapshot_download(
                repo, revision=folder.name, cache_dir=cache_dir, allow_patterns=[FILE_NAME, *names]
            )
        # Offline, snapshot_download accepts an incomplete snapshot.
        if missing := _missing(folder, names):
            raise HubError(
                f"the hub's cache holds only a part of {repo}: {', '.join(missing[:3])} is "
                "missing, and the hub cannot be reached or HF_HUB_OFFLINE is set. Fetch it once "
                f"with `hf download {repo} --revision {folder.name}`"
            )
    return Snapshot(commit=folder.name, folder=folder, is_bundle=True)


def _fetch_first_file(repo: str, revision: str | None, cache_dir: str | None) -> Path:
    """Fetch the file that shows what a repository is: its manifest, or else its configuration.

    With the configuration come the other files that identify a checkpoint.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = {}
    for name in (FILE_NAME, _CONFIG):
        path = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
        if isinstance(path, str):
            cached[name] = Path(path)
    if FILE_NAME in cached and cached[FILE_NAME].parent.name == revision:
        return cached[FILE_NAME]  # a commit never changes
    answer = query_hub(repo, revision, cached=bool(cached))
    if answer is None:
        return next(iter(cached.values()))
    commit, names = answer
    for name in (FILE_NAME, _CONFIG):
        if name in names:
            if name == _CONFIG:
                for identifying in (each for each in IDENTIFYING_FILES if each in names):
                    hf_hub_download(repo, identifying, revision=commit, cache_dir=cache_dir)
            if name in cached and cached[name].parent.name == commit:
                return cached[name]
            # By revision, not by commit: the cache then records the revision's commit, and finds it
            # offline. It comes last: once it is cached, the other files are expected beside it.
            return Path(hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir))
    raise HubError(
        f"{repo} is not a model: it has neither {FILE_NAME} nor {_CONFIG}. Check the name"
    )


def query_hub(
    repo: str, revision: str | None, *, cached: bool, offline: bool = False
) -> tuple[str, frozenset[str]] | None:
    """Return the commit of a revision and the names of its files, from one request.

    The request has a timeout. A download retries for minutes, or for ever, while the hub does
    not answer.

    Args:
        repo: ``OWNER/NAME``.
        revision: Branch, tag or commit.
        cached: Whether files in the cache can be used instead of an answer.
        offline: Make no request.

    Returns:
        None if ``cached`` files have to be used: offline, or without an answer, which is logged.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT, HF_HUB_OFFLINE
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    if offline or HF_HUB_OFFLINE:
        if cached:
            return None
        raise LocalEntryNotFoundError(repo)
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HF_HUB_ETAG_TIMEOUT)
        return str(info.sha), frozenset(file.rfilename for file in info.siblings or ())
    except RevisionNotFoundError:
        raise
    except Exception as error:
        if not cached:
            raise
        logger.warning("using the cached files of %s: %s", repo, explain_hub_error(error))
    return None


def _missing(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]
