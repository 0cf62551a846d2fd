"""How many processors may be used: the affinity mask and a container's quota both count."""

from __future__ import annotations

import pytest

from bge_runtime import cpus


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of eight processors whose cgroup files are the returned folder's."""
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpus, "_CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "0\n"}, 8),
    ],
)
def test_a_containers_quota_counts(machine, files, count):
    (machine / "cpu").mkdir()
    for name, content in files.items():
        (machine / name).write_text(content)
    assert cpus.usable_cpus() == count


def test_the_affinity_mask_counts(machine, monkeypatch):
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: {3}, raising=False)
    (machine / "cpu.max").write_text("400000 100000\n")
    assert cpus.usable_cpus() == 1


X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 {}\n\nflags\t\t: other\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd {}\n"


@pytest.mark.parametrize(
    ("info", "extensions", "in_8_bits"),
    [
        (X86.format("sha_ni"), ("avx2",), False),
        (X86.format("avx512f avx512_vnni"), ("avx2", "avx512_vnni", "avx512f"), True),
        (X86.format("avx_vnni"), ("avx2", "avx_vnni"), True),
        (ARM.format("crc32"), ("asimd",), False),
        (ARM.format("asimddp bf16"), ("asimd", "asimddp", "bf16"), True),
        ("", (), True),
    ],
)
def test_what_the_processor_can_do(tmp_path, monkeypatch, info, extensions, in_8_bits):
    monkeypatch.setattr(cpus, "_CPU_INFO", tmp_path / "cpuinfo")
    assert cpus.vector_extensions() == ()  # no such file, as on other systems
    (tmp_path / "cpuinfo").write_text(info)
    assert cpus.vector_extensions() == extensions
    assert cpus.multiplies_in_8_bits() == in_8_bits
