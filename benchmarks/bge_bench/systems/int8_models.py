"""Make the models of the baselines in int8, each with its own library's tools, from the checkpoint.

That takes minutes, so a model is kept in bge-runtime's cache, by the checkpoint's weights, the
bundle's tokenizer and the versions of what makes it. It is made in a process of its own:
``python -m bge_bench.systems.int8_models KIND CHECKPOINT FOLDER [TEXTS]``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bge_bench.errors import BenchError
from bge_runtime.bundle import FILE_NAME, Bundle
from bge_runtime.system import cache_folder, file_hash, installed_versions, vector_extensions

STATIC_FILE = "openvino/openvino_model_qint8_quantized.xml"
"""Where sentence-transformers writes a model with static scales for OpenVINO."""

_HOW_FILE = "how.txt"
_LAST_LINES = 6

_STATIC, _DYNAMIC, _CTRANSLATE2 = "openvino-static", "onnx-dynamic", "ctranslate2"
_KINDS = MappingProxyType(
    {
        "sentence-transformers-openvino-int8": _STATIC,
        "openvino-int8": _STATIC,
        "sentence-transformers-onnx-int8": _DYNAMIC,
        "ctranslate2": _CTRANSLATE2,
    }
)
"""Kind of model that each baseline reads."""

_MAKERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        _STATIC: ("nncf", "openvino", "optimum-intel", "sentence-transformers"),
        _DYNAMIC: ("onnxruntime", "optimum-onnx", "sentence-transformers"),
        _CTRANSLATE2: ("ctranslate2", "transformers"),
    }
)
"""Packages that make each kind."""


Calibration = tuple[str, Sequence[str]]
"""What texts are, such as ``"xquad-en"``, and the texts."""


def int8_model(
    bundle: Bundle,
    checkpoint: Path,
    calibration: Calibration,
    step: Callable[[str], object],
    system: str,
) -> Path:
    """Return the folder of a baseline's int8 model, which is made if it is not there.

    Args:
        bundle: The bundle, whose tokenizer it gets.
        checkpoint: The checkpoint that the bundle was made from.
        calibration: Texts that static scales are calibrated on.
        step: Called with a message before a model is made.
        system: Name of the baseline.

    Raises:
        BenchError: If it cannot be made.
    """
    kind = _KINDS[system]
    source, given = calibration
    folder = cache_folder() / "bench" / f"{kind}-{_key(bundle, kind, given)}"
    if folder.is_dir():
        return folder
    step(f"{system}: make its int8 model")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="made-", dir=folder.parent) as made:
        draft = Path(made, folder.name)
        draft.mkdir()
        for file in bundle.path.glob("*.json"):  # its configuration and tokenizer
            if file.name not in (FILE_NAME, "modules.json"):
                shutil.copyfile(file, draft / file.name)
        texts = Path(made, "calibration")
        texts.mkdir()
        lines = (json.dumps({"text": text}) for text in given)
        (texts / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        _run(system, kind, checkpoint, draft, texts)
        how = (draft / _HOW_FILE).read_text(encoding="utf-8")
        if kind == _STATIC:
            how += f", static scales calibrated on {source}"
        (draft / _HOW_FILE).write_text(how, encoding="utf-8")
        if not folder.is_dir():  # another run may have been faster
            draft.rename(folder)
    return folder


def how_made(folder: Path | str) -> str:
    """Return what made an int8 model, as text."""
    return Path(folder, _HOW_FILE).read_text(encoding="utf-8")


def dynamic_file() -> str:
    """Return where sentence-transformers writes a dynamic int8 model for this processor."""
    return f"onnx/model_qint8_{_instructions()}.onnx"


def _instructions() -> str:
    """Return the instruction set whose settings sentence-transformers advises here."""
    extensions = {*vector_extensions()}
    if not extensions or extensions & {"avx512_vnni", "avx_vnni"}:
        return "avx512_vnni"
    if "avx512f" in extensions:
        return "avx512"
    return "avx2" if "avx2" in extensions else "arm64"


def _key(bundle: Bundle, kind: str, texts: Sequence[str]) -> str:
    weights = dict(bundle.manifest.provenance.weights_sha256)
    made_from: list[Any] = [
        weights or file_hash.file_sha256(bundle.path / FILE_NAME),
        file_hash.file_sha256(bundle.tokenizer_file),
        installed_versions(_MAKERS[kind]),
        {_STATIC: list(texts), _DYNAMIC: dynamic_file()}.get(kind),
    ]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def _run(system: str, kind: str, checkpoint: Path, draft: Path, texts: Path) -> None:
    given = [kind, str(checkpoint.absolute()), str(draft), str(texts)]
    done = subprocess.run(  # noqa: S603  # our own module
        [sys.executable, "-m", "bge_bench.systems.int8_models", *given],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        # Nothing is fetched, and what `datasets` caches goes away.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(texts.parent / "huggingface")},
    )
    if done.returncode != 0:
        # A progress bar overwrites its own line.
        lines = [line.rpartition("\r")[2].strip() for line in done.stderr.split("\n")]
        told = "\n".join(f"    {line}" for line in [line for line in lines if line][-_LAST_LINES:])
        raise BenchError(f"the int8 model of {system} could not be made; its last words:\n{told}")


def _make_static(checkpoint: str, folder: Path, texts: str) -> str:
    import nncf
    from sentence_transformers import __version__, export_static_quantized_openvino_model

    export_static_quantized_openvino_model(
        _sentence_transformer(checkpoint, "openvino"),
        None,
        str(folder),
        # In place of a dataset of the hub.
        dataset_name=texts,
        dataset_config_name="default",
        dataset_split="train",
        column_name="text",
    )
    return f"{STATIC_FILE} by sentence-transformers {__version__} with nncf {nncf.__version__}"


def _make_dynamic(checkpoint: str, folder: Path, _: str) -> str:
    from sentence_transformers import __version__, export_dynamic_quantized_onnx_model

    model = _sentence_transformer(checkpoint, "onnx")
    export_dynamic_quantized_onnx_model(model, _instructions(), str(folder))
    return f"{dynamic_file()} by sentence-transformers {__version__}"


def _make_ctranslate2(checkpoint: str, folder: Path, _: str) -> str:
    import ctranslate2

    converter = ctranslate2.converters.TransformersConverter(checkpoint)
    converter.convert(str(folder / "ctranslate2"), quantization="int8")
    return "its own converter's int8"


def _sentence_transformer(checkpoint: str, backend: str) -> Any:
    """Return the checkpoint as sentence-transformers exports it to an engine."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(checkpoint, backend=backend, model_kwargs={"export": True})
    pooling = Pooling(transformer.get_embedding_dimension(), "cls")  # not part of what is exported
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


def main() -> None:
    """Make one model."""
    from bge_bench.systems.base import without_telemetry

    kind, checkpoint, folder, texts = sys.argv[1:]
    without_telemetry()
    make = {_STATIC: _make_static, _DYNAMIC: _make_dynamic, _CTRANSLATE2: _make_ctranslate2}[kind]
    how = make(checkpoint, Path(folder), texts)
    Path(folder, _HOW_FILE).write_text(how, encoding="utf-8")


if __name__ == "__main__":
    main()
