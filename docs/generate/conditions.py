"""Under which condition a raw file was measured, in a sentence."""

from __future__ import annotations

import re
import shlex
from typing import Any

_ENGINES = ("bge-runtime", "onnxruntime", "openvino")
_QUIET_PERCENT = 10
_MODELS = {
    "mini-ck": "all-MiniLM-L6-v2",
    "minilm": "all-MiniLM-L6-v2",
    "e5-ck": "multilingual-e5-small",
    "checkpoint": "bge-reranker-base",
}


def condition(name: str, document: Any, *, briefly: bool = False) -> str:
    """Return machine, date, rounds, versions and command of a raw file.

    Args:
        name: The file's name.
        document: Its content.
        briefly: Leave out versions and command.
    """
    rounds = document.get("rounds")
    counted = f"{rounds} round{'s' if rounds > 1 else ''}" if isinstance(rounds, int) else ""
    versions = document.get("versions", {})
    in_force = ", ".join(f"{each} {versions[each]}" for each in _ENGINES if versions.get(each))
    about = [model_of(document), machine(document), counted, dates(document)]
    if not briefly:
        about.append(in_force)
    sentences = ["; ".join(each for each in about if each) + f" ({link(name, 'raw')})."]
    busy = document.get("busy_percent_before", document.get("busy_percent", 0)) or 0
    if busy > _QUIET_PERCENT:
        sentences.append(f"Other programs kept {busy:.0f} % of the machine busy before it began.")
    if isinstance(document.get("command"), list) and not briefly:
        sentences.append(f"`{_command(document['command'])}`")
    return " ".join(sentences)


def link(name: str, text: str) -> str:
    """Return a link to a raw file; `pages.filled` makes it relative to its page."""
    return f"[{text}](results:{name}.json)"


def dates(*documents: Any) -> str:
    """Return the days of measurements."""
    days = sorted({document["time"][:10] for document in documents})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def model_of(document: Any) -> str:
    """Return a model's name, and whether its weights are random."""
    model = str(document.get("model", ""))
    random = document.get("checkpoint", {}).get("random_seed") is not None
    name = _MODELS.get(model, model).removesuffix("-random")
    return f"{name}'s shape with random weights" if random else name


def machine(document: Any) -> str:
    """Return the GPU, or processors and what they can do."""
    hardware = document.get("hardware", {})
    gpus = hardware.get("nvidia", {}).get("gpus", ())
    if gpus and str(document.get("device", "cuda")).startswith("cuda"):
        return str(gpus[0]["name"])
    if "cpu" not in hardware:
        return ""
    # A virtual machine may report the same name for all processors of a vendor.
    able = set(hardware.get("vector_extensions") or ())
    best = [title for name, title in (("avx512_bf16", "AVX512-BF16"), ("avx512_vnni", "VNNI"),
                                      ("avx2", "AVX2")) if name in able]  # fmt: skip
    with_what = f" with {' and '.join(best[:2])}" if best else ""
    return f"{document.get('threads') or hardware['cores']} cores ({hardware['cpu']}{with_what})"


def _command(words: list[str]) -> str:
    """Return a command without files that it wrote, and without folders of its machine."""
    text = shlex.join(words)
    text = re.sub(r" --(json|output|folder) \S+", "", text)
    text = re.sub(r"(?<= )\S*/(?=text\b)", "", text)
    return re.sub(r"^(cli|main)\.py", "bge-bench", text)
