"""Build libraries that imitate CUDA's, so that ONNX Runtime's CUDA provider can be loaded.

    python tests/cuda_imitation/build.py PROVIDER FOLDER

reads from the provider which functions it imports, and writes libraries that have them into the
folder. Needs a C compiler and readelf.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("libraries.c")
LIBRARIES = (
    "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcuda.so.1",
    "libcudnn.so",
)  # fmt: skip


def build(provider: Path, folder: Path) -> None:
    """Write all libraries, each with all functions: symbols are resolved by library and version."""
    listing = ["readelf", "--dyn-syms", "--wide", str(provider)]
    listed = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    wanted = set(re.findall(r"UND ((?:__cuda|cuda|cublas|curand|cu[A-Z])\w*)", listed))
    # The provider opens cuDNN by name and looks up its functions by name.
    wanted |= {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)\0", provider.read_bytes())}
    source = SOURCE.read_text("utf-8")
    for name in sorted(wanted):
        if not re.search(rf"\b{name}\(", source):
            source += f"int {name}(void) {{ DO(); }}\n"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        unit, versions = Path(scratch, "all.c"), Path(scratch, "versions")
        unit.write_text(source, "utf-8")
        for library in LIBRARIES:
            versions.write_text(f"{library} {{ *; }};\n", "utf-8")
            linking = f"-Wl,-soname,{library},--version-script={versions}"
            target = str(folder / library)
            subprocess.run(["cc", "-shared", "-fPIC", linking, "-o", target, unit], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
