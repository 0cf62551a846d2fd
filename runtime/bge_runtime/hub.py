"""The Hugging Face hub: what it holds under an id, and its refusals in plain words.

``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_TOKEN`` and its other settings are
huggingface_hub's own affair. It is imported when it is used: a local bundle needs none of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bge_runtime.bundle import Bundle
from bge_runtime.errors import HubError
from bge_runtime.manifest import FILE_NAME

_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A hub repository at one commit.

    Attributes:
        commit: Its full hash.
        bundle: Folder of the bundle that it is; None for a checkpoint.
    """

    commit: str
    bundle: Path | None


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form ``OWNER/NAME``."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def find_snapshot(
    repo: str, *, revision: str | None = None, cache_dir: str | None = None
) -> Snapshot:
    """Ask the hub what a repository is; download it if it is a bundle.

    What is in the hub's cache already is not downloaded again; offline nothing is asked.

    Args:
        repo: ``OWNER/NAME``.
        revision: Branch, tag or commit.
        cache_dir: Folder of the hub's cache; None for its default.

    Raises:
        HubError: If the hub does not give it, or cannot be reached and the cache does
            not hold it.
        BundleError: If it is a bundle with a damaged manifest, or a newer one.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    with explained(repo, revision):
        try:
            manifest = hf_hub_download(repo, FILE_NAME, revision=revision, cache_dir=cache_dir)
        except EntryNotFoundError:  # nor in the cache, if the hub was not asked
            config = hf_hub_download(repo, _CONFIG, revision=revision, cache_dir=cache_dir)
            return Snapshot(commit=Path(config).parent.name, bundle=None)
    folder = Path(manifest).parent
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
    return Snapshot(commit=folder.name, bundle=folder)


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
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
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
        wanted = repo if revision is None else f"{repo} at {revision}"
        forbids = offline or ("HF_HUB_OFFLINE" if HF_HUB_OFFLINE else None)
        if forbids is not None:
            raise HubError(
                f"{wanted} is not in the hub's cache, and {forbids} forbids to fetch it. Do "
                "without it once, or pass a local folder"
            ) from error
        raise HubError(
            f"the hub cannot be reached, and {wanted} is not in its cache. Check the network, "
            "or pass a local folder"
        ) from error
    except EntryNotFoundError as error:
        raise HubError(
            f"{repo} is no model: it has neither {FILE_NAME} nor {_CONFIG}. Check the name"
        ) from error
    except (OSError, ValueError) as error:
        raise HubError(f"cannot fetch {repo} from the hub: {error}") from error
