"""What processors there are: how many threads compute, and what they can do."""

from __future__ import annotations

import pytest

from bge_runtime import FlagModel
from bge_runtime.system import cpus


@pytest.mark.parametrize(
    ("value", "threads"),
    [
        *[("1", 1), ("3", 3), (" 3 ", 3), ("3,1", 3), ("16", 8)],
        *[("", 8), ("0", 8), ("-2", 8), ("two", 8), ("1.5", 8), ("²", 8), (",3", 8)],
    ],
)
def test_omp_num_threads_lowers_the_number_of_threads(monkeypatch, value, threads):
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert cpus.default_threads() == threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cpus.default_threads() == 8


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_use_the_default_number_of_threads(full_tiny_bundle, monkeypatch, engine):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for threads, expected in ((None, 1), (2, 2)):
        model = FlagModel(str(full_tiny_bundle), engine=engine, use_fp16=False, threads=threads)
        assert model.engine.info.threads == min(expected, cpus.usable_cpus())


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
def test_the_processors_vector_extensions_are_read(
    tmp_path, monkeypatch, info, extensions, in_8_bits
):
    monkeypatch.setattr(cpus, "_CPU_INFO", tmp_path / "cpuinfo")
    assert cpus.vector_extensions() == ()  # no such file, as on other systems
    (tmp_path / "cpuinfo").write_text(info)
    assert cpus.vector_extensions() == extensions
    assert cpus.multiplies_in_8_bits() == in_8_bits
