"""Compiles the drivers, and through them the CUDA sources of the tree they stand in, with g++."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPILER = os.environ.get("CXX", "g++")
COMMON = ["-std=c++17", "-g1", "-gdwarf-4", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-array-bounds"]
TREE = ("csrc/*.cu", "csrc/*.h", "kernels/**/*.cuh", "kernels/**/*.h")  # what a driver is made of
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Of a driver, and of the emulator itself. -fsanitize=thread: the calls that memory.cpp answers; no sanitizer's library.
MODES = {
    "checked": (["-O1", "-fsanitize=thread,bounds", "-fno-tree-sra"], ["-O2"]),
    "plain": (["-O1"], ["-O2"]),
    "sanitized": (["-O1", *SANITIZED], ["-O1", "-fsanitize=address"]),
}


def sources() -> list[Path]:
    """All that a library can depend on."""
    found = [file for pattern in TREE for file in ROOT.glob(pattern)]
    return sorted([*found, *HERE.rglob("*.h"), *HERE.rglob("*.cpp"), Path(__file__)])


def library(driver: str, mode: str) -> Path:
    """drivers/<driver>.cpp as a library; built once for what it is made of."""
    digest = hashlib.sha256(repr((driver, mode, COMPILER)).encode())
    for file in sources():
        digest.update(file.name.encode() + file.read_bytes())
    made = _folder() / f"{driver}-{mode}-{digest.hexdigest()[:16]}.so"
    if not made.exists():
        compile_library(driver, mode, ROOT, made)
    return made


def compile_library(driver: str, mode: str, root: Path, made: Path) -> None:
    """The same of a tree at `root` that has csrc and kernels."""
    flags = [*COMMON, *WARNINGS, *MODES[mode][0], *includes(root), str(HERE / "drivers" / f"{driver}.cpp")]
    # Linked apart: the linker would take -fsanitize=thread for a wish for that sanitizer's own library.
    compiled = made.with_suffix(f".{os.getpid()}.o")
    _run(compiled, [*flags, "-c"])
    runtime = [str(runtime_object(name, mode)) for name in ("emulator", "memory")]
    _run(made, [str(compiled), *runtime, "-shared", *(SANITIZED if mode == "sanitized" else [])])
    compiled.unlink()


def includes(root: Path) -> list[str]:
    return [f"-I{HERE}/include", f"-I{HERE}", f"-I{root}"]


def headers(driver: str) -> list[Path]:
    """What it is made of that ships."""
    command = [COMPILER, "-std=c++17", "-MM", *includes(ROOT), str(HERE / "drivers" / f"{driver}.cpp")]
    rule = subprocess.run(command, check=True, capture_output=True, text=True).stdout.replace("\\\n", " ")
    files = {Path(word).resolve() for word in rule.split()[1:]}
    return sorted(file for file in files if not file.is_relative_to(HERE) and file.is_relative_to(ROOT))


def runtime_object(name: str, mode: str) -> Path:
    digest = hashlib.sha256(repr((mode, COMPILER)).encode())
    for file in [*sorted(HERE.glob("*.h")), HERE / f"{name}.cpp", Path(__file__)]:
        digest.update(file.read_bytes())
    made = _folder() / f"{name}-{mode}-{digest.hexdigest()[:16]}.o"
    if not made.exists():
        _run(made, [*COMMON, *WARNINGS, *MODES[mode][1], "-c", str(HERE / f"{name}.cpp")])
    return made


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


def sanitizer_environment() -> dict[str, str] | None:
    """For a Python that loads a sanitized library."""
    find = [COMPILER, "-print-file-name=libasan.so"]
    preload = subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(preload).is_absolute():
        return None
    found = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT / "tests")}
    return os.environ | found
