"""Limits of a container: those of one's own control group and of all above it, wherever mounted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from bge_runtime.system import cgroups, cpus, memory

CPUS = 8
FREE = 8_192_000
HUGE = "9223372036854771712"


@dataclass(frozen=True)
class Layout:
    """How a system shows a process's groups, in a folder that stands for ``/sys/fs/cgroup``.

    Attributes:
        groups: ``/proc/self/cgroup``.
        mounts: Mounted hierarchies: file system, its options, root, and folder.
        own: Folder of the process's own group, with the controller's files, by version.
        above: Folder of a group above it.
        other: Folder of a group whose limits are another's.
    """

    groups: str
    mounts: tuple[tuple[str, str, str, str], ...]
    own: str
    above: str
    other: str | None = None

    @property
    def version(self) -> int:
        return 2 if "0::" in self.groups and "memory" not in self.groups else 1


POD = "/kubepods.slice/pod1.slice/cri-1.scope"
LAYOUTS = {
    "version 2 on the machine itself": Layout(
        "0::/user.slice/user-0.slice/job.scope\n",
        (("cgroup2", "rw", "/", ""),),
        "user.slice/user-0.slice/job.scope",
        "user.slice",
        "user.slice/user-1.slice",
    ),
    "version 2 in a container with its namespace": Layout(
        "0::/\n", (("cgroup2", "rw,nsdelegate", "/", ""),), "", ""
    ),
    "version 2 in a container, a group within its namespace": Layout(
        "0::/worker/1\n", (("cgroup2", "rw", "/", ""),), "worker/1", "", "worker/2"
    ),
    "version 2 in a container without a namespace": Layout(
        f"0::{POD}\n", (("cgroup2", "rw", POD, ""),), "", ""
    ),
    "version 2 without a namespace, a group within": Layout(
        f"0::{POD}/a\n", (("cgroup2", "rw", POD, ""),), "a", "", "b"
    ),
    "version 2 beside version 1, which has the controllers": Layout(
        f"12:memory:{POD}\n4:cpu,cpuacct:{POD}\n0::{POD}\n",
        (
            ("cgroup2", "rw", "/", "unified"),
            ("cgroup", "rw,cpu,cpuacct", "/", "both"),
            ("cgroup", "rw,memory", "/", "both"),
        ),
        f"both{POD}",
        "both/kubepods.slice",
        "both/kubepods.slice/pod2.slice",
    ),
    "version 1 in a container, a mount for each": Layout(
        f"12:memory:{POD}\n4:cpu,cpuacct:{POD}\n1:name=systemd:{POD}\n",
        (("cgroup", "ro,cpu,cpuacct", POD, "a b"), ("cgroup", "ro,memory", POD, "a b")),
        "a b",
        "a b",
    ),
    "version 1 on the machine itself": Layout(
        "9:name=systemd:/\n4:memory:/jobs/7\n2:cpuacct:/\n1:cpu:/jobs/7\n0::/\n",
        (("cgroup", "rw,cpu", "/", "both"), ("cgroup", "rw,memory", "/", "both")),
        "both/jobs/7",
        "both/jobs",
        "both/jobs/8",
    ),
    "a mount from above one's own namespace": Layout(
        "0::/worker/1\n", (("cgroup2", "rw", "/../..", "top"),), "top", "top", "top/worker"
    ),
    "a mount of another part of the hierarchy as well": Layout(
        f"0::{POD}\n",
        (("cgroup2", "rw", "/kubepods.slice/pod2.slice", "neighbour"), ("cgroup2", "rw", "/", "")),
        POD[1:],
        "kubepods.slice",
        "neighbour",
    ),
}


@pytest.fixture
def show(monkeypatch, tmp_path):
    """Make this machine one of 8 processors and 8,000 kB, with a layout; write a group's files."""
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: set(range(CPUS)), raising=False)
    monkeypatch.setattr(memory, "_MEMORY_INFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    monkeypatch.setattr(cgroups, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "_MOUNTS", tmp_path / "mountinfo")
    root = tmp_path / "sys"

    def show(layout: Layout) -> Path:
        (tmp_path / "cgroup").write_text(layout.groups)
        lines = ["22 1 0:21 / /proc rw,nosuid - proc proc rw"]
        for kind, options, top, place in layout.mounts:
            point = str(root / place).replace(" ", r"\040")
            lines.append(f"31 23 0:28 {top} {point} rw,relatime shared:9 - {kind} {kind} {options}")
        (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
        return root

    return show


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content + "\n")


def cpu_limit(version: int, count: float) -> dict[str, str]:
    quota = str(int(count * 100_000))
    if version == 2:
        return {"cpu.max": f"{quota} 100000"}
    return {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"}


def memory_limit(version: int, limit: int, used: int = 0, idle: int = 0) -> dict[str, str]:
    if version == 2:
        names = ("memory.max", "memory.current", "inactive_file")
    else:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return {names[0]: str(limit), names[1]: str(used), "memory.stat": f"anon 1\n{names[2]} {idle}"}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("where", ["own", "above", "both", "other"])
def test_the_tightest_limit_of_a_process_and_its_parent_groups_counts(show, layout, where):
    root = show(layout)
    write(root / layout.own, {})
    if where in ("own", "both"):
        write(root / layout.own, cpu_limit(layout.version, 3))
        write(root / layout.own, memory_limit(layout.version, 5000, 1000, 400))
    if where in ("above", "both") and layout.above != layout.own:
        write(root / layout.above, cpu_limit(layout.version, 1.5))
        write(root / layout.above, memory_limit(layout.version, 9000, 6000, 0))
    if where == "other" and layout.other is not None:
        write(root / layout.other, cpu_limit(1, 1) | cpu_limit(2, 1))
        write(root / layout.other, memory_limit(1, 10) | memory_limit(2, 10))
    above = layout.above != layout.own
    expected = {
        "own": (3, 4400),
        "above": (2, 3000) if above else (CPUS, FREE),
        "both": (2, 3000) if above else (3, 4400),
        "other": (CPUS, FREE),
    }
    assert (cpus.usable_cpus(), memory.available_memory()) == expected[where]


V2, V1 = LAYOUTS["version 2 on the machine itself"], LAYOUTS["version 1 on the machine itself"]


@pytest.mark.parametrize(
    ("layout", "files", "count"),
    [
        (V2, {}, CPUS),
        (V2, {"cpu.max": "max 100000"}, CPUS),
        (V2, {"cpu.max": "150000 100000"}, 2),
        (V2, {"cpu.max": "10000 100000"}, 1),
        (V2, {"cpu.max": "3200000 100000"}, CPUS),
        (V2, {"cpu.max": "nonsense"}, CPUS),
        (V2, {"cpu.max": "100000 0"}, CPUS),
        (V1, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, CPUS),
        (V1, {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "0"}, CPUS),
        (V1, {"cpu.cfs_quota_us": "250000"}, CPUS),
    ],
)
def test_a_quota_is_rounded_up_and_a_missing_quota_is_no_limit(show, layout, files, count):
    write(show(layout) / layout.own, files)
    assert cpus.usable_cpus() == count


@pytest.mark.parametrize(
    ("layout", "files", "left"),
    [
        (V2, {"memory.max": "max", "memory.current": "5", "memory.stat": ""}, FREE),
        (V2, {"memory.max": "3000", "memory.current": "1000", "memory.stat": "anon 9"}, 2000),
        (V2, memory_limit(2, 3000, 1000, 400), 2400),
        (V2, memory_limit(2, 9000, 1000, 400) | {"memory.high": "3000"}, 2400),
        (V2, memory_limit(2, 3000, 1000, 400) | {"memory.high": "max"}, 2400),
        (V2, {"memory.max": "3000"}, FREE),
        (V2, memory_limit(2, 3000, 4000), 0),
        (V1, memory_limit(1, 3000, 2000, 300), 1300),
        (V1, memory_limit(1, int(HUGE), 2000, 300), FREE),
    ],
)
def test_available_memory_is_what_the_limit_leaves(show, layout, files, left):
    write(show(layout) / layout.own, files)
    assert memory.available_memory() == left


def test_the_affinity_mask_counts(show, monkeypatch):
    write(show(V2) / V2.own, cpu_limit(2, 4))
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert cpus.usable_cpus() == 1


@pytest.mark.parametrize("name", ["cgroup", "mountinfo"])
@pytest.mark.parametrize("content", [None, "", "nonsense\n", "0:\n:::\n - cgroup2\n", "\udcff"])
def test_a_system_without_control_groups_has_no_limits(show, tmp_path, name, content):
    write(show(V2) / V2.own, cpu_limit(2, 1))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert (cpus.usable_cpus(), memory.available_memory()) == (CPUS, FREE)


@pytest.mark.parametrize("content", ["", "MemAvailable: much"])
def test_a_system_without_memory_information_returns_none(show, tmp_path, content):
    show(V2)
    (tmp_path / "meminfo").write_text(content)
    assert memory.available_memory() is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says")
def test_this_machine_has_available_memory():
    assert memory.available_memory() > 1 << 20
