"""``bge-runtime doctor``: what is installed, what would run and why, what is wrong."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from tqdm import tqdm

from bge_runtime._version import __version__
from bge_runtime.bundle import TOLERANCES, Bundle, Parity, Reference, Variant
from bge_runtime.cli.command_line import command_line
from bge_runtime.cli.shell_options import in_options
from bge_runtime.encoding import TextTokenizer
from bge_runtime.engines import (
    CUDA,
    ENGINES,
    INSTALL_GPU,
    TENSORRT,
    load_engine,
    ort_providers,
    tensorrt,
    unavailable_reason,
)
from bge_runtime.errors import BgeError, BundleError
from bge_runtime.sources import find_bundle
from bge_runtime.system import (
    cache_folder,
    cpu_model,
    default_threads,
    format_table,
    installed_versions,
    multiplies_in_8_bits,
    nvidia,
    owners,
    usable_cpus,
    vector_extensions,
)
from bge_runtime.variants import measure_parity

_INSTALL = "Run `pip install 'bge-runtime[cpu]'`"

STANDARD_VARIANTS = tuple(
    Variant(
        name=f"{engine}-{precision}",
        graph="",
        engine=engine,
        device=device,
        precision=precision,
        parity=None,
    )
    for engine, device, precision in (
        ("openvino", "cpu", "bf16"),
        ("onnxruntime", "cpu", "fp32"),
        ("openvino", "cpu", "fp32"),
        ("onnxruntime", "cuda", "fp16"),
        ("tensorrt", "cuda", "fp16"),
    )
)
"""What a bundle can be run by, the preferred one first."""

_PACKAGED = ("onnxruntime", "openvino")
"""Engines that are a package. TensorRT is a library, for onnxruntime's provider."""

_ASKED = (
    ("use_fp16=True, the default", ("bf16", "fp32")),
    ("use_fp16=False", ("fp32",)),
    ("use_bf16=True", ("bf16",)),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something worth knowing.

    Attributes:
        text: What was found, and what to do.
        wrong: Whether it has to be mended.
    """

    text: str
    wrong: bool


@dataclass(frozen=True, kw_only=True)
class Check:
    """What came of measuring one variant on this machine.

    Attributes:
        variant: The variant.
        in_force: What executed it; or why nothing could.
        parity: Its distance from PyTorch's vectors; None if it was not run.
        failures: Limits that are missed; the error, if it failed.
    """

    variant: Variant
    in_force: str
    parity: Parity | None
    failures: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"FAIL"``, or ``"not here"`` for what this machine cannot run."""
        if self.failures:
            return "FAIL"
        return "not here" if self.parity is None else "pass"


@click.group(context_settings={"max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Look after an installation of bge-runtime."""


@main.command()
@click.option(
    "--verify",
    "model",
    metavar="BUNDLE",
    help="Hash every file of a bundle and measure all its variants on this machine.",
)
@command_line("bge-runtime")
def doctor(model: str | None) -> None:
    """Say what is installed, what would run where and why, and what is wrong.

    The exit status is 1 if something has to be mended.
    """
    click.echo(_machine())
    click.echo("\n" + _engine_table())
    if model is None:
        click.echo("\n" + _choice_table(STANDARD_VARIANTS))
    findings = list(examine())
    if findings:
        click.echo()
    for finding in findings:
        click.echo(f"{'WRONG' if finding.wrong else 'note'}: {finding.text}")
    sound = not any(finding.wrong for finding in findings)
    if model is not None:
        sound = _verify(model) and sound
    sys.exit(0 if sound else 1)


def examine() -> Iterator[Finding]:
    """Look for what is wrong with this installation, and what is merely worth knowing."""
    for package in _PACKAGED:
        if len(wheels := owners(package)) > 1:
            yield Finding(
                text=f"{' and '.join(wheels)} are installed side by side and overwrite each "
                f"other's files of {package}. Run `pip uninstall {' '.join(wheels)}`, then install "
                "the one you want",
                wrong=True,
            )
    absent = [name for name in _PACKAGED if _version_of(name) is None]
    for name in absent:
        alone = len(absent) == len(_PACKAGED)
        yield Finding(text=f"the engine {name} is not installed. {_INSTALL}", wrong=alone)
    broken = {name: reason for name in _PACKAGED if (reason := _import_failure(name)) is not None}
    for name, reason in broken.items():
        yield Finding(text=f"{name} is installed and cannot be imported: {reason}", wrong=True)
    if not {"onnxruntime"} & {*absent, *broken}:
        yield from _examine_gpus(owners("onnxruntime"))
    if "openvino" not in absent:
        bf16 = STANDARD_VARIANTS[0]
        if (reason := unavailable_reason(bf16)) is not None:
            yield Finding(text=f"no 16-bit arithmetic: {reason}; fp32 is used", wrong=False)
    if not multiplies_in_8_bits():
        yield Finding(
            text="int8 is no faster than fp32 here, single short texts aside: this processor has "
            "no products of 8 bits (VNNI, AMX, or ARM's dot product)",
            wrong=False,
        )
    cache, writable = _cache()
    if not writable:
        yield Finding(
            text=f"the cache, {cache}, cannot be written: weights are hashed at every "
            "start, and nothing can be exported on the spot. Set XDG_CACHE_HOME",
            wrong=False,
        )


def _examine_gpus(wheels: Mapping[str, str]) -> Iterator[Finding]:
    driver = nvidia.find_driver()
    ort = ort_providers.load()
    available = ort.get_available_providers()
    if CUDA not in available:
        for name in wheels:
            if "gpu" in name:  # nightly ones are called otherwise
                yield Finding(
                    text=f"{name} is installed, but its files have no CUDA provider: those of "
                    "another wheel lie over them. Run `pip install --force-reinstall --no-deps "
                    f"{name}=={wheels[name]}`",
                    wrong=True,
                )
                return
        if isinstance(driver, nvidia.Driver) and driver.gpus:
            yield Finding(
                text=f"{driver.gpus[0].name} is not used: the installed wheel, "
                f"{' and '.join(wheels) or 'of an unknown name'}, has no CUDA provider. To use "
                f"it, {INSTALL_GPU}",
                wrong=False,
            )
        return
    if isinstance(driver, str):
        yield Finding(text=f"onnxruntime could use a GPU, but {driver}", wrong=False)
        return
    built = _cuda_of(ort)
    if built is not None and driver.cuda < built:
        yield Finding(
            text=f"the NVIDIA driver {driver.version} serves CUDA {_dotted(driver.cuda)}, and "
            f"onnxruntime-gpu {ort.__version__} needs CUDA {_dotted(built)}. Install a newer "
            "driver",
            wrong=True,
        )
    elif driver.gpus and (reason := ort_providers.load_failure(CUDA)) is not None:
        yield Finding(text=f"the GPU is not used: {reason}", wrong=True)
    if (
        TENSORRT in available
        and tensorrt.version() is None
        and tensorrt.newer_version() is not None
    ):
        yield Finding(
            text=f"TensorRT {tensorrt.newer_version()} is installed, and onnxruntime-gpu "
            f"{ort.__version__} is linked to {tensorrt.LIBRARY}. Run "
            f"`pip install {tensorrt.PACKAGE}`",
            wrong=False,
        )


def _cuda_of(ort: Any) -> tuple[int, ...] | None:
    """Give the CUDA that a wheel was built for."""
    try:
        information = importlib.import_module(f"{ort.__name__}.capi.build_and_package_info")
        return tuple(int(part) for part in str(information.cuda_version).split(".")[:2])
    except (ImportError, AttributeError, ValueError):
        return None


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def verify(bundle: Bundle, reference: Reference) -> Iterator[Check]:
    """Measure every variant of a bundle on this machine, one after the other.

    Args:
        bundle: The bundle.
        reference: PyTorch's vectors, as the bundle holds them.
    """
    for variant in bundle.manifest.variants:
        reason = unavailable_reason(variant)
        if reason is not None:
            yield Check(variant=variant, in_force=reason, parity=None, failures=())
            continue
        try:
            info, parity = measure_parity(bundle, variant, reference)
        except BgeError as error:
            yield Check(variant=variant, in_force="failed", parity=None, failures=(str(error),))
            continue
        failures = tuple(parity.failures(TOLERANCES[variant.precision]))
        yield Check(
            variant=variant,
            in_force=f"{info.provider} {info.version}",
            parity=parity,
            failures=failures,
        )


def _verify(model: str) -> bool:
    try:
        bundle = Bundle.at(find_bundle(model, export=False))
        click.echo(f"\n{bundle.path}")
        size = sum(file.size_bytes for file in bundle.manifest.files.values())
        click.echo(f"hashing {len(bundle.manifest.files)} files, {size / 1e6:,.0f} MB …", err=True)
        bundle.check_files(hash_weights=True)
        click.echo("every file is the one that was exported")
        reference = bundle.reference()
        _check_tokens(bundle, reference)
        click.echo("every text is tokenised as it was then\n")
        count = len(bundle.manifest.variants)
        measuring = verify(bundle, reference)
        checks = list(tqdm(measuring, total=count, desc="measuring", unit="variant", disable=None))
    except BgeError as error:
        click.echo(f"FAIL: {in_options(str(error))}")
        return False
    rows: list[tuple[str, ...]] = [
        ("variant", "in force", "cosine at export", "here", "error/distance", "verdict")
    ]
    rows += [_row(check) for check in checks]
    click.echo(format_table(rows))
    for check in checks:
        for failure in check.failures:
            click.echo(f"FAIL: {check.variant.name}: {failure}")
    able = [check.variant for check in checks if check.verdict == "pass"]
    click.echo("\n" + _choice_table(able))
    reasons = dict.fromkeys(check.in_force for check in checks if check.verdict == "not here")
    if not able and reasons:
        click.echo(
            f"FAIL: this machine can run no variant of it: {'; '.join(reasons)}. Install what is "
            "missing, or export it again with --target cpu"
        )
    return bool(able) and not any(check.failures for check in checks)


def _check_tokens(bundle: Bundle, reference: Reference) -> None:
    longest = max(len(ids) for ids in reference.token_ids)
    tokens = TextTokenizer(bundle.tokenizer_file).encode(reference.texts, max_length=longest)
    for text, ours, theirs in zip(reference.texts, tokens, reference.token_ids, strict=True):
        if ours.tolist() != theirs.tolist():
            version = installed_versions(["tokenizers"])["tokenizers"]
            raise BundleError(
                f"tokenizers {version} gives other tokens for {text[:40]!r} than transformers did "
                "when the bundle was made. Install another version of tokenizers"
            )


def _row(check: Check) -> tuple[str, ...]:
    exported = check.variant.parity
    return (
        check.variant.name,
        check.in_force,
        "not measured" if exported is None else f"{exported.min_cosine:.7f}",
        "" if check.parity is None else f"{check.parity.min_cosine:.7f}",
        "" if check.parity is None else f"{check.parity.error_share:.2e}",
        check.verdict,
    )


def _machine() -> str:
    # Of huggingface_hub only its settings: the runtime itself needs none of it.
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    usable, there = usable_cpus(), os.cpu_count()
    processor = ", ".join([cpu_model(), *vector_extensions()])
    threads = default_threads()
    limited = f", {threads} are by OMP_NUM_THREADS" if threads < usable else ""
    rows = [
        ("bge-runtime", f"{__version__}, Python {platform.python_version()}"),
        ("system", platform.platform()),
        ("processor", f"{processor}; {usable} of {there} processors may be used{limited}"),
        *_gpu_rows(),
        ("cache", _cache()[0]),
        ("hub cache", f"{HF_HUB_CACHE}{', offline' if HF_HUB_OFFLINE else ''}"),
    ]
    return format_table(rows)


def _gpu_rows() -> list[tuple[str, str]]:
    driver = nvidia.find_driver()
    if isinstance(driver, str):
        return [("GPU", f"none: {driver}")]
    rows = [
        (
            f"cuda:{index}",
            f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, sm_{gpu.compute_capability}",
        )
        for index, gpu in enumerate(driver.gpus)
    ]
    return [("driver", f"{driver.version}, for CUDA up to {_dotted(driver.cuda)}"), *rows]


def _engine_table() -> str:
    rows = [("engine", "version", "computes here in")]
    for name in ENGINES:
        version = _version_of(name) if name in _PACKAGED else tensorrt.version()
        variants = [variant for variant in STANDARD_VARIANTS if variant.engine == name]
        able = [
            variant.precision + (" on a GPU" if variant.device != "cpu" else "")
            for variant in variants
            if unavailable_reason(variant) is None
        ]
        rows.append((name, version or "not installed", ", ".join(able) or "nothing"))
    return format_table(rows)


def _choice_table(variants: Sequence[Variant]) -> str:
    rows = [("asked for", "runs here")]
    for asked, precisions in _ASKED:
        # On the default device; another one is asked for by its name.
        able = [
            f"{variant.engine} in {variant.precision}"
            for variant in variants
            if variant.device == "cpu"
            and variant.precision in precisions
            and unavailable_reason(variant) is None
        ]
        rows.append((asked, able[0] if able else "nothing: an error"))
    return format_table(rows)


def _version_of(engine: str) -> str | None:
    found = ", ".join(f"{version} ({name})" for name, version in owners(engine).items())
    if found or importlib.util.find_spec(engine) is None:
        return found or None
    return "unknown"


def _import_failure(engine: str) -> str | None:
    try:
        load_engine(engine)
    except ModuleNotFoundError as error:
        return None if error.name == engine else str(error)
    except Exception as error:  # noqa: BLE001  # a shared library that is missing, say
        return f"{type(error).__name__}: {error}"
    return None


def _cache() -> tuple[str, bool]:
    """Name the folder, and tell whether it can be written."""
    try:
        folder = cache_folder()
    except OSError as error:
        return f"none ({error})", False
    return str(folder), os.access(_existing(folder), os.W_OK)


def _existing(path: os.PathLike[str]) -> str:
    """Give the nearest folder above that is there."""
    folder = os.fspath(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return folder


if __name__ == "__main__":
    main()
