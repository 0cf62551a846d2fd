"""Linux control groups, which limit the resources of a process, for example in a container.

A process belongs to one group of each hierarchy. The limits of that group and of all groups above
it apply. ``/proc/self/cgroup`` names the group, and ``/proc/self/mountinfo`` the mount point of its
hierarchy. Both versions of the interface are read, also side by side, with or without a namespace
(see cgroups(7)).
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
    """List the folders of this process's group and of all visible groups above it.

    Args:
        controller: ``"cpu"`` or ``"memory"``.

    Returns:
        Version of the interface, on which file names depend, and folder. A folder may lack the
        controller's files.
    """
    groups = _groups_by_controller()
    for version, controllers, root, mount_point in _mounts():
        group = groups.get("" if version == 2 else controller)
        if group is None or (version == 1 and controller not in controllers):
            continue
        if set(PurePosixPath(root).parts[1:]) == {".."}:
            # Mounted from above this namespace: the names of the groups between are unknown.
            yield version, mount_point
            continue
        try:
            below = PurePosixPath(group).relative_to(root)
        except ValueError:  # this mount shows another part of the hierarchy
            continue
        folder = mount_point / below
        yield version, folder
        for _ in below.parts:
            folder = folder.parent
            yield version, folder


def _groups_by_controller() -> dict[str, str]:
    """Return the path of this process's group by controller; version 2 has an empty name."""
    groups = {}
    with contextlib.suppress(OSError, ValueError):
        for line in _GROUPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _mounts() -> Iterator[tuple[int, list[str], str, Path]]:
    """List mounted hierarchies: version, controllers, top group and mount point."""
    with contextlib.suppress(OSError):
        text = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        for line in text.splitlines():
            before, _, after = line.partition(" - ")
            fields, kind = before.split(), after.split()
            if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
                continue
            root, mount_point = (_ESCAPED.sub(_unescape, field) for field in fields[3:5])
            yield (2 if kind[0] == "cgroup2" else 1), kind[2].split(","), root, Path(mount_point)


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))
