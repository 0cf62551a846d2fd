"""The Hugging Face hub: what it holds under an id, and its refusals in plain words.

``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_TOKEN`` and its other settings are
huggingface_hub's own affair. It is imported when it is used: a local bundle needs none of it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bge_runtime.bundle import FILE_NAME, Bundle
from bge_runtime.errors import BgeError, HubError
from bge_runtime.sources.identity import TELLING_FILES

logger = logging.getLogger(__name__)

_CONFIG = "config.json"

_LONG = 200

_OF_THE_DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)
"""Errors that a network has no part in, as has none that names a file."""

_CHECK = "Check the network and HF_ENDPOINT, or pass a local folder"

_STATUS_ADVICE = {
    401: "Log in with `hf auth login`, or correct HF_TOKEN",
    403: "Check what the token may do, with `hf auth whoami`",
    429: "Those are too many requests: try again later, or log in with `hf auth login`",
    **dict.fromkeys((500, 502, 503, 504), "Try again later, or pass a local folder"),
}


_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
_HUB_ADDRESS = re.compile(
    r"\s*(?:https?://[^/]+/|(?:www\.)?huggingface\.co/|hf://)?(?:models/)?"
    rf"({_HUB_ID.pattern}?)(?:\.git)?(?:/|/(?:tree|blob|resolve)/.*)?\s*",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A hub repository at one commit.

    Attributes:
        commit: Its full hash.
        folder: Its folder in the hub's cache: a whole bundle, or what tells the class of a
            checkpoint.
        is_bundle: Whether it is a bundle.
    """

    commit: str
    folder: Path
    is_bundle: bool


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``OWNER/NAME``, in characters that the hub has."""
    return _HUB_ID.fullmatch(name) is not None


def hub_id_in(name: str) -> str | None:
    """Return the hub id that somebody meant by an address of its page, or with a slash after it.

    Args:
        name: No hub id itself, and nothing that is there.
    """
    match = _HUB_ADDRESS.fullmatch(name)
    return match and match[1]


def find_snapshot(
    repo: str, *, revision: str | None = None, cache_dir: str | None = None
) -> Snapshot:
    """Ask the hub what a repository is; download it if it is a bundle.

    What is in the hub's cache already is not downloaded again, and is used where the hub does
    not answer. Offline nothing is asked.

    Args:
        repo: ``OWNER/NAME``.
        revision: Branch, tag or commit.
        cache_dir: Folder of the hub's cache; None for its default.

    Raises:
        HubError: If the hub does not give it, or cannot be reached and the cache does
            not hold it.
        BundleError: If it is a bundle with a damaged manifest, or a newer one.
    """
    from huggingface_hub import snapshot_download

    with explained(repo, revision):
        found = _first_file(repo, revision, cache_dir)
    folder = found.parent
    if found.name != FILE_NAME:
        return Snapshot(commit=folder.name, folder=folder, is_bundle=False)
    names = list(Bundle.at(folder).manifest.files)
    if _missing(folder, names):
        with explained(repo, revision):
            snapshot_download(
                repo, revision=folder.name, cache_dir=cache_dir, allow_patterns=[FILE_NAME, *names]
            )
        # Where the hub is not asked, a part of a snapshot is good enough for it.
        if missing := _missing(folder, names):
            raise HubError(
                f"the hub's cache holds only a part of {repo}: {', '.join(missing[:3])} is not "
                "there, and the hub is out of reach or HF_HUB_OFFLINE is set. Fetch it once "
                f"with `hf download {repo} --revision {folder.name}`"
            )
    return Snapshot(commit=folder.name, folder=folder, is_bundle=True)


def _first_file(repo: str, revision: str | None, cache_dir: str | None) -> Path:
    """Find the file that says what a repository is: its manifest, or else its configuration.

    Beside its configuration is then what else tells the class of a checkpoint.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = {}
    for name in (FILE_NAME, _CONFIG):
        there = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
        if isinstance(there, str):
            cached[name] = Path(there)
    if FILE_NAME in cached and cached[FILE_NAME].parent.name == revision:
        return cached[FILE_NAME]  # a commit never changes
    answer = ask(repo, revision, cached=bool(cached))
    if answer is None:
        return next(iter(cached.values()))
    commit, names = answer
    for name in (FILE_NAME, _CONFIG):
        if name in names:
            if name == _CONFIG:
                for telling in (each for each in TELLING_FILES if each in names):
                    hf_hub_download(repo, telling, revision=commit, cache_dir=cache_dir)
            if name in cached and cached[name].parent.name == commit:
                return cached[name]
            return Path(hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir))
    raise HubError(f"{repo} is no model: it has neither {FILE_NAME} nor {_CONFIG}. Check the name")


def ask(
    repo: str, revision: str | None, *, cached: bool, offline: bool = False
) -> tuple[str, frozenset[str]] | None:
    """Ask the hub for the commit of a revision and the names of its files.

    That is one question, with a limit of time. A download asks again for minutes where the hub
    does not answer, or for ever.

    Args:
        repo: ``OWNER/NAME``.
        revision: Branch, tag or commit.
        cached: Whether the cache holds what can be used in place of an answer.
        offline: Do not ask.

    Returns:
        None where ``cached`` has to do: offline, or if there is no answer, with a warning.
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
        logger.warning("what the hub's cache holds of %s is used: %s", repo, _complaint(error))
    return None


def _missing(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


@contextlib.contextmanager
def explained(repo: str, revision: str | None, *, offline: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into a `HubError` that says what to do.

    Args:
        repo: ``OWNER/NAME``.
        revision: What was asked for.
        offline: What else than HF_HUB_OFFLINE forbids to ask the hub, if anything.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = repo if revision is None else f"{repo} at {revision}"
    try:
        with _without_retries_told():
            yield
    except BgeError:
        raise
    except HFValidationError as error:
        raise HubError(f"{repo} is no hub id ({one_line(error)}). Check the name") from error
    except GatedRepoError as error:
        raise HubError(
            f"{repo} asks for an agreement on its hub page; accept it there and log in with "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no repository {repo}, or it is private: check the name, or log in "
            "with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo} has no revision {revision!r} on the hub") from error
    except LocalEntryNotFoundError as error:
        forbids = offline or ("HF_HUB_OFFLINE" if HF_HUB_OFFLINE else None)
        if forbids is not None:
            raise HubError(
                f"{wanted} is not in the hub's cache, and {forbids} forbids to fetch it. Do "
                "without it once, or pass a local folder"
            ) from error
        raise HubError(f"cannot fetch {wanted}: {_complaint(error)}") from error
    except Exception as error:  # of an HTTP library, which depends on huggingface_hub's version
        raise HubError(f"cannot fetch {wanted}: {_complaint(error)}") from error


def _complaint(error: BaseException) -> str:
    """Say what is wrong with the hub's answer, or with the cache, and what helps."""
    if isinstance(error, OSError) and (error.filename or error.errno in _OF_THE_DISK):
        return f"the hub's cache cannot be written ({error}). Make room, or set HF_HOME"
    status = None
    while True:
        # Whatever the HTTP library, its errors have the response if there was one.
        status = getattr(getattr(error, "response", None), "status_code", status)
        context = None if error.__suppress_context__ else error.__context__
        if (inner := error.__cause__ or context) is None:
            break
        error = inner
    if status is not None:
        return f"the hub answers with status {status}. {_STATUS_ADVICE.get(status, _CHECK)}"
    return (
        f"the hub cannot be reached or does not answer as it should ({one_line(error)}). {_CHECK}"
    )


def one_line(error: BaseException) -> str:
    """Return type and message of an error in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


@contextlib.contextmanager
def _without_retries_told() -> Iterator[None]:
    """Keep huggingface_hub's two lines for each retry from the terminal; what comes of it is told.

    A filter for each call, and no level: calls of other threads may begin and end meanwhile.
    """

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    loggers = [
        logging.getLogger(f"huggingface_hub.{name}")
        for name in ("utils._http", "file_download", "_snapshot_download")
    ]
    for one in loggers:
        one.addFilter(is_error)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(is_error)
