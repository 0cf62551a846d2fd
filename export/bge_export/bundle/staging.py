"""Write a bundle into a staging directory beside its place, and rename it when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bge_runtime.bundle import FILE_NAME, Manifest
from bge_runtime.errors import BgeError, BundleError, ExportError


def resolve_output(output: Path, *, force: bool) -> Path:
    """Return the absolute path of a bundle's folder, checked by `check_output`.

    Links are followed: a link to a bundle stays, and the bundle behind it is replaced.

    Raises:
        ExportError: As `check_output`.
    """
    output = output.expanduser().resolve()
    check_output(output, force=force)
    return output


def check_output(output: Path, *, force: bool) -> None:
    """Check that a bundle may be written to a folder.

    Raises:
        ExportError: If something else is there, or there is a bundle and ``force`` is off.
    """
    if not output.exists():
        return
    if os.path.ismount(output) or output.resolve() == Path.cwd():
        raise ExportError(
            f"{output} is {'a mount point' if os.path.ismount(output) else 'the current folder'}, "
            "and a bundle is put in place by renaming a folder; pass a folder inside it"
        )
    if not (output / FILE_NAME).is_file():
        if output.is_dir() and not any(output.iterdir()):
            return
        raise ExportError(
            f"{output} exists and is not a bundle; choose another --output, or move it away"
        )
    if not force:
        raise ExportError(f"{output} is a bundle already; pass --force to replace it")
    try:
        manifest = Manifest.from_json((output / FILE_NAME).read_text("utf-8"), where=str(output))
    except (BundleError, OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{output} holds a damaged bundle, so it is unknown which files are bge-export's; "
            "delete it, or choose another --output"
        ) from error
    ours = {FILE_NAME, *manifest.files}
    others = sorted(
        str(path.relative_to(output))
        for path in output.rglob("*")
        if not path.is_dir() and str(path.relative_to(output)) not in ours
    )
    if others:
        raise ExportError(
            f"{output} also holds {', '.join(others[:5])}{' …' if len(others) > 5 else ''}, which "
            "bge-export did not write and --force would delete; move them away"
        )


@contextmanager
def staging_directory(output: Path) -> Iterator[Path]:
    """Create a folder to write into, and remove it unless it is renamed away.

    Raises:
        ExportError: In place of any `OSError`.
    """
    draft: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
        draft.chmod(0o755)  # mkdtemp makes it private, but bundles are shared
        yield draft
    except BgeError:
        raise
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def commit_directory(draft: Path, output: Path, *, force: bool) -> None:
    """Rename a finished folder into place. With ``force`` it replaces an older bundle.

    Raises:
        ExportError: If something else has appeared there since `check_output`.
        OSError: If the file system refuses. An older bundle is then restored.
    """
    for path in draft.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    check_output(output, force=force)
    if not output.exists():
        draft.rename(output)
        return
    # A folder cannot be replaced in one step, so the old one is deleted last.
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old-", dir=output.parent))
    try:
        output.rename(old / output.name)
        draft.rename(output)
    except BaseException:
        if not output.exists():
            (old / output.name).rename(output)
        raise
    finally:
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_json_files(draft: Path) -> None:
    """Check that every JSON file of a folder is valid JSON, not just readable by Python.

    Configurations are written as they were read, and Python reads and writes NaN.

    Raises:
        ExportError: If one holds NaN or Infinity.
    """

    def refuse(word: str) -> None:
        raise ExportError(
            f"{path.name} would hold {word}, as the checkpoint's does, which is not valid JSON. "
            "Replace it by the number that was meant"
        )

    for path in sorted(draft.rglob("*.json")):
        json.loads(path.read_text("utf-8"), parse_constant=refuse)


def check_space(draft: Path, needed: int) -> None:
    """Check that a bundle of so many bytes fits on the disk.

    Raises:
        ExportError: If it does not.
    """
    free = shutil.disk_usage(draft).free
    if free < needed:
        raise ExportError(
            f"the disk of {draft.parent} has {free / 1e6:,.0f} MB free, and the bundle takes at "
            f"least {needed / 1e6:,.0f} MB; free some, or choose another --output"
        )
