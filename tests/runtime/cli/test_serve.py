"""What ``bge-serve`` refuses before it serves."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

pytest.importorskip("starlette", reason="the extra serve is not installed")

from bge_runtime.cli.serve import _split_name, main


def refuse(*arguments):
    """Return what is said of arguments with which nothing can be served."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--port", "0"])
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output
    return result.output


def test_a_name_that_cannot_be_part_of_a_path(tiny_bundle):
    said = refuse(f"{tiny_bundle}=a b", f"{tiny_bundle}=c")
    assert "a model cannot be served as 'a b', which is part of its path" in said
    assert "bge-serve MODEL=NAME" in said


def test_two_models_of_one_name(tiny_bundle):
    assert f"bge-serve {tiny_bundle}=NAME" in refuse(tiny_bundle, tiny_bundle)


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3e-5").mkdir()
    assert _split_name("lr=3e-5") == ("lr=3e-5", "")
    assert _split_name("lr=3e-5=docs") == ("lr=3e-5", "docs")
    assert _split_name("./b=queries") == ("./b", "queries")


def test_the_help_names_engines_and_defaults():
    said = CliRunner().invoke(main, ["--help"]).output
    for part in ("onnxruntime, openvino, tensorrt", "[default: text]", "[default: 2048", "16384"):
        assert part in said


def test_a_file_without_keys(tiny_bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("\n# none yet\n")
    assert f"{keys} has no API key" in refuse(tiny_bundle, "--api-keys", keys)
