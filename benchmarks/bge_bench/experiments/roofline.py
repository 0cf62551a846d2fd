"""Measure the machine's rate of matrix multiplication, and count the operations of a model."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np

from bge_bench.errors import BenchError
from bge_runtime.engines import cpu_capabilities

_ROWS, _INPUTS, _OUTPUTS = 2048, 1024, 4096
_GPU_SIZE = 8192
_REPEATS, _LEAST_REPEATS, _ENOUGH_S = 9, 3, 3.0
"""Number of timed products, and the minimum once they have taken longer than this."""
_BLOCK = 128


def needed_flop(config: Mapping[str, Any], pooling: str, lengths: Sequence[int]) -> float:
    """Return the operations that an encoder's vectors need; a multiply-add counts as two.

    Matrix products and attention count, without padding. With [CLS] pooling the last layer needs
    keys and values of all tokens, and everything else of the first token only.

    Args:
        config: The encoder's ``config.json``.
        pooling: ``"cls"`` or ``"mean"``.
        lengths: Tokens of each text, special tokens included.
    """
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    layers = int(config["num_hidden_layers"])
    tokens = np.asarray(lengths, dtype=np.float64)
    of_token = 2 * (4 * width**2 + 2 * width * inner)
    layer = tokens * of_token + 4 * width * tokens**2
    first_only = tokens * 4 * width**2 + (of_token - 4 * width**2) + 4 * width * tokens
    last = first_only if pooling == "cls" else layer
    return float(((layers - 1) * layer + last).sum())


def measure_rates(threads: int, device: str = "cpu") -> dict[str, float]:
    """Return the rates of large matrix products, measured in their own process.

    For fp32 and bf16 it is the faster of PyTorch and OpenVINO, with one product on all threads or
    one on each. For int8 it is OpenVINO, with 8-bit weights and activations quantized at run time.
    On a GPU it is PyTorch in fp32 (without TF32), bf16 and fp16.

    Returns:
        Operations per second by precision; bf16 only if the processor supports it.

    Raises:
        BenchError: If that process fails.
    """
    done = subprocess.run(  # noqa: S603  # our own module
        [sys.executable, "-m", "bge_bench.experiments.roofline", str(threads), device],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BenchError(f"measuring the matrix rate failed: {done.stderr[-2000:]}")
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def _fastest(make: Callable[[int, int], Callable[[], object]], threads: int) -> float:
    """Return the higher rate: one product on all threads, or one on each thread in parallel."""
    together = _rate(make(threads, 1))
    if threads == 1:
        return together
    apart = make(threads, threads)
    with ThreadPoolExecutor(threads) as pool:

        def run_apart() -> object:
            return list(pool.map(lambda _: apart(), range(threads)))

        return max(together, threads * _rate(run_apart))


def _rate(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    times: list[float] = []
    for _ in range(3 + _REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        if len(times) > _LEAST_REPEATS and time.perf_counter() - begin > _ENOUGH_S:
            break
    # The first ones run with cold caches and idle threads.
    times = times[min(3, len(times) - _LEAST_REPEATS) :]
    return 2 * _ROWS * _INPUTS * _OUTPUTS / statistics.median(times)


def _pytorch(name: str, threads: int, products: int) -> Callable[[], object]:
    import torch

    dtype = getattr(torch, name)
    rows = torch.randn(_ROWS, _INPUTS).to(dtype)
    matrix = torch.nn.Linear(_INPUTS, _OUTPUTS, bias=False).to(dtype)

    def run() -> object:
        torch.set_num_threads(threads // products)  # of the calling thread, too
        with torch.inference_mode():
            return matrix(rows)

    return run


def _event() -> Any:
    import torch

    event: Any = torch.cuda.Event
    return event(enable_timing=True)


def _on_gpu(name: str, device: str) -> float:
    import torch

    dtype = getattr(torch, name)
    rows, matrix = (torch.randn(_GPU_SIZE, _GPU_SIZE, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    for _ in range(3 + _REPEATS):
        begin, end = (_event() for _ in range(2))
        begin.record()
        for _ in range(10):
            rows @ matrix
        end.record()
        torch.cuda.synchronize(device)
        times.append(begin.elapsed_time(end) / 1e4)
    return 2 * _GPU_SIZE**3 / statistics.median(times[3:])


def _openvino(precision: str, threads: int, products: int) -> Callable[[], object]:
    import openvino as ov
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    rows = ops.parameter([-1, _INPUTS], np.float32)
    if precision == "int8":
        blocks = _INPUTS // _BLOCK
        values = rng.integers(-127, 128, (_OUTPUTS, blocks, _BLOCK)).astype(np.int8)
        scales = np.full((_OUTPUTS, blocks, 1), 0.01, dtype=np.float32)
        wide = ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scales))
        matrix = ops.reshape(wide, ops.constant(np.array([_OUTPUTS, _INPUTS])), False)
    else:
        matrix = ops.constant(rng.normal(size=(_OUTPUTS, _INPUTS)).astype(np.float32))
    model = ov.Model([ops.matmul(rows, matrix, False, True)], [rows])
    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(products),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_BLOCK),
    }
    compiled = ov.Core().compile_model(model, "CPU", settings)
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(products):
        requests.put(compiled.create_infer_request())
    feed = rng.normal(size=(_ROWS, _INPUTS)).astype(np.float32)

    def run() -> object:
        request = requests.get()
        result = request.infer({0: feed}, share_inputs=True, share_outputs=True)
        requests.put(request)
        return result

    return run


def main() -> None:
    """Print the rates as JSON."""
    threads, device = int(sys.argv[1]), sys.argv[2]
    names = {"fp32": "float32", "bf16": "bfloat16"}
    if device != "cpu":
        names["fp16"] = "float16"
        sys.stdout.write(json.dumps({key: _on_gpu(name, device) for key, name in names.items()}))
        return
    if "BF16" not in cpu_capabilities():  # OpenVINO would use fp32, and PyTorch emulate bf16
        del names["bf16"]
    rates = {
        precision: max(
            _fastest(partial(_pytorch, name), threads),
            _fastest(partial(_openvino, precision), threads),
        )
        for precision, name in names.items()
    }
    rates["int8"] = _fastest(partial(_openvino, "int8"), threads)
    sys.stdout.write(json.dumps(rates))


if __name__ == "__main__":
    main()
