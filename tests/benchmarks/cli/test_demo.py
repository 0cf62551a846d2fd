import subprocess
import sys

import numpy as np
import pytest

from bge_bench.cli.demo import SENTENCES, export, similarity_table
from bge_runtime.system import format_table


def test_the_matrix_marks_each_sentences_nearest_other():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    table = similarity_table(["first", "second", "third " * 20], vectors).splitlines()
    assert table[1].split() == ["1", "first", "1.00", "0.80*", "0.00"]
    assert table[2].split() == ["2", "second", "0.80*", "1.00", "0.60"]
    assert "0.60*" in table[3]
    assert "…" in table[3]


def test_a_bundle_that_is_there_is_not_exported_again(tiny_bundle, tmp_path, capsys):
    export(tmp_path / "no-checkpoint-needed", tiny_bundle)
    assert "is there already" in capsys.readouterr().out


def test_it_does_without_what_its_environment_lacks():
    """``make demo`` installs the ``export`` extra and the group ``demo``, not ``bench``."""
    code = (
        "import sys\n"
        "lacking = ('FlagEmbedding', 'fastembed', 'matplotlib', 'optimum', 'mteb')\n"
        "sys.modules.update(dict.fromkeys(lacking))\n"
        "import bge_bench.cli.demo, bge_bench.workers.worker, bge_bench.systems.pytorch"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_sentences_are_in_several_languages_and_differ():
    assert len(set(SENTENCES)) == len(SENTENCES) >= 8
    assert any(not sentence.isascii() for sentence in SENTENCES)


@pytest.mark.parametrize("cell", ["-0.1", "7"])
def test_numbers_are_aligned_on_the_right(cell):
    lines = format_table([["name", "value"], ["a", cell]]).splitlines()
    assert len(lines[0]) == len(lines[1])
    assert lines[1].endswith(cell)
