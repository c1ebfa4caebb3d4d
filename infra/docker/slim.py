"""Removes files that no role needs at run time from an environment, compiles imported modules. Runs in image builds.

Compiled files contain no timestamp and aren't checked against their sources, which can't change in a read-only image.
"""

from __future__ import annotations

import importlib
import marshal
import py_compile
import shutil
import struct
import sys
from importlib.machinery import SourceFileLoader
from importlib.metadata import distribution
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from pathlib import Path
from types import CodeType

# Tests, headers and build helpers of wheels, relative to site-packages.
NOT_NEEDED = (
    "torch/test",
    "torch/include",
    "torch/share",
    "torch/bin/[!t]*",
    "torch/bin/test_*",  # torch_shm_manager beside them is needed by `import torch`
    "pyarrow/include",
    "numba/tests",
    "onnx/backend/test/data",
    "*/tests",
    "networkx/**/tests",
    "numba/cuda/tests",
    "pandas/**/tests",
    "scipy/**/tests",
    "sklearn/**/tests",
    "sympy/**/tests",
    "numpy/**/tests",
)
NEEDED = ("pyre_extensions/tests",)  # which its package imports
NAMES = ("*.a", "*.pyi", "*.pyx", "*.pxd", "uv_cache.json")
# Modules that a step imports later. Any other module is compiled when it is first imported.
LATE = (
    "great_expectations.expectations.core",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "mlflow.pyfunc",
    "onnxruntime.quantization",
    "optuna.storages.journal",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch.distributed.launcher.api",
    "torch.onnx",
    "torch.utils.data",
    "torchrec.distributed.planner",
)
STRIPPED_BYTES = 1 << 20
UNCHECKED = (1).to_bytes(4, "little")  # a compiled file's flags: known by its source's hash, never compared (PEP 552)


def remove(packages: Path) -> None:
    """Removes the above from a site-packages folder."""
    for pattern in NOT_NEEDED:
        for found in sorted({*packages.glob(pattern)} - {packages / needed for needed in NEEDED}):
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    for pattern in NAMES:
        for found in packages.rglob(pattern):
            found.unlink()


def strip(library: Path) -> None:
    """Cuts the parts that no segment loads off a 64-bit ELF library: the symbols for debuggers, a fifth of torch.

    Section headers go too; the loader reads program headers alone (System V ABI, chapter 5).
    """
    with library.open("r+b") as stream:
        header = bytearray(stream.read(64))
        if header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
            return
        # ELF's header has at byte 32 the place, at 54 the size and the number of the program headers, at 40 the place
        # and at 60 the number of the section headers.
        place, size, count = (*struct.unpack_from("<Q", header, 32), *struct.unpack_from("<HH", header, 54))
        stream.seek(place)
        segments = stream.read(size * count)
        ends = [sum(struct.unpack_from("<Q16xQ", segments, size * i + 8)) for i in range(count)]
        struct.pack_into("<Q", header, 40, 0)
        struct.pack_into("<HH", header, 60, 0, 0)
        stream.seek(0)
        stream.write(header)
        stream.truncate(max(*ends, place + size * count))


def compile_imported(roots: list[str], packages: Path) -> None:
    """Imports the distributions' modules, and keeps the compiled form of all that this loads."""
    ours, kept = (str(packages), sys.base_prefix), set[str]()
    compiled = SourceFileLoader.source_to_code

    def keep(loader: SourceFileLoader, source: bytes, path: str) -> CodeType:
        code = compiled(loader, source, path)
        if path.startswith(ours):
            kept.add(path)
            file = Path(cache_from_source(path))
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(MAGIC_NUMBER + UNCHECKED + source_hash(source) + marshal.dumps(code))
        return code

    SourceFileLoader.source_to_code = keep  # type: ignore[assignment, method-assign]
    for name in [*roots, *LATE]:
        try:
            importlib.import_module(name)
        except ImportError:  # of another role
            continue
    files = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())} - kept
    for file in sorted(f for f in files if f.endswith(".py") and f.startswith(ours)):
        py_compile.compile(file, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, quiet=2)


def modules_of(lock: Path) -> list[str]:
    """Top modules of the distributions in a lock that name them."""
    found: set[str] = set()
    for line in lock.read_text().splitlines():
        given = distribution(line.split("==")[0])
        top = given.read_text("top_level.txt") or ""
        found.update(top.split() or [given.metadata["Name"].replace("-", "_")])
    return sorted(found)


if __name__ == "__main__":
    site = next(Path(sys.prefix).glob("lib/python3.*/site-packages"))
    remove(site)
    for file in site.rglob("*.so*"):
        if file.stat().st_size > STRIPPED_BYTES:
            strip(file)
    compile_imported(modules_of(Path(sys.argv[1])), site)
