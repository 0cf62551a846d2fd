"""Count the calls of the GPU's engine into CUDA, with libraries that imitate CUDA's.

    LD_LIBRARY_PATH=FOLDER python tests/cuda_imitation/count_calls.py FOLDER BUNDLE

prints a JSON document. No kernel computes anything, so the vectors are meaningless.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from pathlib import Path

import numpy as np

from bge_runtime.bundle import SENTENCE_EMBEDDING
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.parity import Parity
from bge_runtime.engines import EngineOptions, open_engine
from bge_runtime.variants import select_cuda_graph_variant, selection

FUNCTIONS = {
    "streams": "cudaStreamCreateWithFlags",
    "kernels": "__cudaLaunchKernel",
    "captured": "cudaGraphInstantiate",
    "replayed": "cudaGraphLaunch",
    "copies": "cudaMemcpy",
    "copies_in_stream": "cudaMemcpyAsync",
    "allocations": "cudaMalloc",
}


def main(folder: Path, path: Path) -> None:
    """Print the number of calls when a bundle is opened, and for some batches."""
    runtime = ctypes.CDLL(str(folder / "libcudart.so.13"))
    cublas = ctypes.CDLL(str(folder / "libcublas.so.13"))
    runtime.calls.restype = cublas.calls.restype = ctypes.c_long

    def counts() -> dict[str, int]:
        found = {key: runtime.calls(name.encode()) for key, name in FUNCTIONS.items()}
        return {**found, "handles": cublas.calls(b"cublasCreate_v2")}

    def called(work) -> dict[str, int]:
        before = counts()
        work()
        return {key: value - before[key] for key, value in counts().items()}

    # Nothing is computed, so that a parity check would fail.
    same = Parity(texts=1, min_cosine=1.0, mean_cosine=1.0, max_error=0.0, error_share=0.0)
    selection.cached_parity = lambda *_: same

    bundle = Bundle.open(path)
    (variant,) = (v for v in bundle.manifest.variants if v.name == "cuda-fp16")
    runtime.keep.restype = ctypes.c_char_p
    document: dict[str, dict[str, object]] = {}
    for kind, graphs in (("plain", False), ("graphs", True)):
        options = EngineOptions(
            cuda_graph_variant=select_cuda_graph_variant(bundle, variant) if graphs else None
        )
        engine = open_engine(bundle, variant, options)

        def run(rows: int, tokens: int, engine=engine) -> None:
            ids = np.full((rows, tokens), 7, dtype=np.int64)
            (vectors,) = engine.run(ids, np.ones_like(ids), [SENTENCE_EMBEDDING])
            assert vectors.shape == (rows, bundle.manifest.model.dim)

        def from_threads(run=run) -> None:
            for _ in range(6):
                threads = [threading.Thread(target=run, args=(3, 20)) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

        run(1, 5)
        document[kind] = {
            "threads": called(from_threads),
            "query": called(lambda run=run: run(1, 5)),
            "longest": called(lambda run=run: run(1, 64)),
            "longer": called(lambda run=run: run(1, 65)),
            "two": called(lambda run=run: run(2, 5)),
            "in all": counts(),
        }
        if graphs:
            runtime.keep(1)
            run(1, 5)
            document[kind]["order"] = runtime.keep(0).decode().split()
    print(json.dumps(document))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
