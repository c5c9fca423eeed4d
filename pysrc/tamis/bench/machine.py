"""Where a figure was measured: the header of every JSON file, and the allocator's modes."""

import datetime
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

# "default" leaves glibc alone: it gives every block over 32 MB back, and the next result faults its pages in again.
# "kept" is a process that holds on to its memory, as a caching allocator would.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"},
}


def allocator_mode() -> str:
    """The mode of this process: default, kept, or custom for any other malloc setting."""
    settings = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
    if "LD_PRELOAD" in os.environ:
        return "custom"
    return next((name for name, wanted in ALLOCATORS.items() if settings == wanted), "custom")


def allocator_environment(mode: str) -> dict[str, str]:
    """This environment, in another mode. glibc reads it once, at start, so it takes a new process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    return kept | ALLOCATORS.get(mode, {})


def huge_pages() -> str:
    """always, madvise or never; unknown where Linux does not say."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return text[text.index("[") + 1 : text.index("]")]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_sizes(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> dict[str, int]:
    """Bytes of L1d, L2 and L3 that a core sees; 0 where Linux does not say."""
    sizes = dict.fromkeys(("L1d", "L2", "L3"), 0)
    for place in Path(folder).glob("index*"):
        with suppress(OSError, ValueError):  # as in some virtual machines
            level, kind, size = ((place / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                sizes["L1d" if level == "1" else f"L{level}"] = int(size.removesuffix("K")) << 10
    return sizes


def environment() -> dict[str, str]:
    """What is set that decides figures: tamis's own variables, and torch's huge pages."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith("TAMIS_") or k == "THP_MEM_ALLOC_ENABLE"}


def commit() -> str:
    """The checkout this code lies in, `+` if it was changed since; unknown outside one."""
    here = Path(__file__).resolve()

    def git(*args: str) -> str:
        command = ["git", "-C", str(here.parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", here.name)  # else an environment inside another project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/csrc", ":/kernels", ":/pysrc")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def header() -> dict[str, Any]:
    """Everything a figure depends on that is not in its row."""
    import tamis
    from tamis import _native
    from tamis.common.backend import isa

    return {
        "cpu": _native.isa_report()["cpu"],
        "cores": cores(),
        "caches": cache_sizes(),
        "isa": isa(),
        "huge_pages": huge_pages(),
        "environment": environment(),
        "torch": torch.__version__,
        "tamis": tamis.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
