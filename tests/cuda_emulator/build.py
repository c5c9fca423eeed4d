"""Compiles the drivers, and through them the CUDA sources of the tree they stand in, with g++."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPILER = os.environ.get("CXX", "g++")
COMMON = ["-std=c++17", "-g1", "-gdwarf-4", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-array-bounds"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Of a driver, and of the emulator itself. -fsanitize=thread: the calls that memory.cpp answers; no sanitizer's library.
MODES = {
    "checked": (["-O1", "-fsanitize=thread,bounds", "-fno-tree-sra"], ["-O2"]),
    "plain": (["-O1"], ["-O2"]),
    "sanitized": (["-O1", *SANITIZED], ["-O1", "-fsanitize=address"]),
}


def sources(root: Path) -> list[Path]:
    """All that a library can depend on."""
    found = [
        *root.glob("csrc/*.cu"),
        *root.glob("csrc/*.h"),
        *root.glob("kernels/**/*.cuh"),
        *root.glob("kernels/**/*.h"),
    ]
    return sorted([*found, *HERE.rglob("*.h"), *HERE.rglob("*.cpp"), Path(__file__)])


def library(driver: str, mode: str, root: Path = ROOT) -> Path:
    """drivers/<driver>.cpp as a library; built once for what it is made of."""
    digest = hashlib.sha256(repr((driver, mode, COMPILER)).encode())
    for file in sources(root):
        digest.update(file.name.encode() + file.read_bytes())
    made = _folder() / f"{driver}-{mode}-{digest.hexdigest()[:16]}.so"
    if not made.exists():
        runtime = [runtime_object(name, mode) for name in ("emulator", "memory")]
        flags = [*COMMON, *WARNINGS, *MODES[mode][0], f"-I{HERE}/include", f"-I{HERE}", f"-I{root}"]
        _compile(made, [*flags, str(HERE / "drivers" / f"{driver}.cpp")], runtime, mode)
    return made


def runtime_object(name: str, mode: str) -> Path:
    digest = hashlib.sha256(repr((mode, COMPILER)).encode())
    for file in [*sorted(HERE.glob("*.h")), HERE / f"{name}.cpp", Path(__file__)]:
        digest.update(file.read_bytes())
    made = _folder() / f"{name}-{mode}-{digest.hexdigest()[:16]}.o"
    if not made.exists():
        _run(made, [*COMMON, *WARNINGS, *MODES[mode][1], "-c", str(HERE / f"{name}.cpp")])
    return made


def _compile(made: Path, flags: list[str], runtime: list[Path], mode: str) -> None:
    link = [*map(str, runtime), "-shared", *(SANITIZED if mode == "sanitized" else [])]
    # -fsanitize=thread as the linker sees it would bring the sanitizer's own library
    compiled = made.with_suffix(f".{os.getpid()}.o")
    _run(compiled, [*flags, "-c"])
    _run(made, [str(compiled), *link])
    compiled.unlink()


def _run(made: Path, arguments: list[str]) -> None:
    partial = made.with_name(f"{made.name}.{os.getpid()}")
    done = subprocess.run([COMPILER, *arguments, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{COMPILER} {' '.join(arguments)}:\n{done.stderr[:3000]}")
    partial.replace(made)


def _folder() -> Path:
    folder = ROOT / "build" / "cuda_emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a tree that cannot be written to
        folder = Path(tempfile.gettempdir()) / f"cuda_emulator-{os.getuid()}"
        folder.mkdir(exist_ok=True)
    return folder


def have_compiler() -> bool:
    return shutil.which(COMPILER) is not None
