"""Translate errors of huggingface_hub into a `HubError` that says what to do."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator

from bge_runtime.errors import BgeError, HubError

_MAX_LENGTH = 200

_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)
"""Error numbers that no network raises. Nor does a network raise errors with a file name."""

_CHECK = "Check the network and HF_ENDPOINT, or pass a local folder"

_STATUS_ADVICE = {
    401: "Log in with `hf auth login`, or correct HF_TOKEN",
    403: "Check what the token may do, with `hf auth whoami`",
    429: "Too many requests: try again later, or log in with `hf auth login`",
    **dict.fromkeys((500, 502, 503, 504), "Try again later, or pass a local folder"),
}


@contextlib.contextmanager
def translate_hub_errors(
    repo: str, revision: str | None, *, offline: str | None = None
) -> Iterator[None]:
    """Raise a `HubError` for whatever huggingface_hub raises in the body.

    Args:
        repo: ``OWNER/NAME``.
        revision: Branch, tag or commit that was asked for.
        offline: Name of the option that forbids requests, apart from HF_HUB_OFFLINE.
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
        with _hide_retries():
            yield
    except BgeError:
        raise
    except HFValidationError as error:
        raise HubError(
            f"{repo} is not a valid Hub ID ({format_error(error)}). Check the name"
        ) from error
    except GatedRepoError as error:
        raise HubError(
            f"{repo} is gated: accept the terms on its Hub page, and log in with `hf auth login`"
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
                f"{wanted} is not in the hub's cache, and {forbids} forbids downloading it. "
                f"Run once without {forbids}, or pass a local folder"
            ) from error
        raise HubError(f"cannot fetch {wanted}: {explain_hub_error(error)}") from error
    except Exception as error:  # from an HTTP library that depends on huggingface_hub's version
        raise HubError(f"cannot fetch {wanted}: {explain_hub_error(error)}") from error


def explain_hub_error(error: BaseException) -> str:
    """Return what is wrong with the hub's answer or with the cache, and what to do."""
    if isinstance(error, OSError) and (error.filename or error.errno in _DISK_ERRORS):
        return f"the hub's cache cannot be written ({error}). Free some space, or set HF_HOME"
    status = None
    while True:
        # Errors of every HTTP library have the response, if there was one.
        status = getattr(getattr(error, "response", None), "status_code", status)
        context = None if error.__suppress_context__ else error.__context__
        if (inner := error.__cause__ or context) is None:
            break
        error = inner
    if status is not None:
        return f"the hub answers with status {status}. {_STATUS_ADVICE.get(status, _CHECK)}"
    return f"the hub cannot be reached or gives a bad answer ({format_error(error)}). {_CHECK}"


def format_error(error: BaseException) -> str:
    """Return the type and message of an error in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


@contextlib.contextmanager
def _hide_retries() -> Iterator[None]:
    """Hide the two lines that huggingface_hub logs for each retry. Its last error is raised.

    A filter for each call instead of a log level, since calls of other threads overlap.
    """

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    loggers = [
        logging.getLogger(f"huggingface_hub.{name}")
        for name in ("utils._http", "file_download", "_snapshot_download")
    ]
    for logger in loggers:
        logger.addFilter(is_error)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_error)
