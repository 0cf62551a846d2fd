"""Control groups: where Linux keeps the limits of this process, of a container say.

A process belongs to one group of each hierarchy, and is held to the limits of that group and of
all groups above it. ``/proc/self/cgroup`` names the group and ``/proc/self/mountinfo`` says where
its hierarchy is mounted: both versions of the interface, alone or side by side, with a namespace
or without one (cgroups(7)).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNTS = Path("/proc/self/mountinfo")

_ESCAPED = re.compile(r"\\([0-7]{3})")


def own_groups(controller: str) -> Iterator[tuple[int, Path]]:
    """List the folders of this process's group and all above it that can be seen.

    Args:
        controller: ``"cpu"`` or ``"memory"``.

    Returns:
        Version of the interface, which decides how files are called, and folder. The folders
        need not have the controller's files.
    """
    groups = _groups_by_controller()
    for version, controllers, root, place in _mounts():
        group = groups.get("" if version == 2 else controller)
        if group is None or (version == 1 and controller not in controllers):
            continue
        if set(PurePosixPath(root).parts[1:]) == {".."}:
            # Mounted before this namespace began, from above it: the groups between have no name.
            yield version, place
            continue
        try:
            below = PurePosixPath(group).relative_to(root)
        except ValueError:  # that mount shows another part of the hierarchy
            continue
        folder = place / below
        yield version, folder
        for _ in below.parts:
            folder = folder.parent
            yield version, folder


def _groups_by_controller() -> dict[str, str]:
    """Read the path of this process's group by controller; version 2 goes by no name."""
    groups = {}
    with contextlib.suppress(OSError, ValueError):
        for line in _GROUPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _mounts() -> Iterator[tuple[int, list[str], str, Path]]:
    """List mounted hierarchies: version, controllers, the group at the top, and the folder."""
    with contextlib.suppress(OSError):
        text = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        for line in text.splitlines():
            before, _, after = line.partition(" - ")
            fields, kind = before.split(), after.split()
            if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
                continue
            root, place = (_ESCAPED.sub(_unescaped, field) for field in fields[3:5])
            yield (2 if kind[0] == "cgroup2" else 1), kind[2].split(","), root, Path(place)


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))
