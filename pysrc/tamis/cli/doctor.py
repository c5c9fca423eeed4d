"""`tamis doctor`: what was built, what runs here, and why the rest does not."""

import importlib.metadata
import importlib.util
import json as json_module
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer


class Backend(NamedTuple):
    live: bool
    reason: str


def backends() -> dict[str, Backend]:
    """Each implementation and why it serves calls here, or does not."""
    return {"cpu": _backend(_cpu), "triton": _backend(_triton), "cuda": _backend(_cuda)}


def _backend(check: Callable[[], Backend]) -> Backend:
    try:
        return check()
    except Exception as error:  # doctor must say what is broken, not break with it
        return Backend(False, f"{type(error).__name__}: {error}")


def _cpu() -> Backend:
    from ..common.backend import isa

    return Backend(True, f"kernels for {isa()}" + (", forced by TAMIS_ISA" if os.environ.get("TAMIS_ISA") else ""))


def _device() -> str:
    """Why there is no CUDA device; empty where there is one."""
    import torch

    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch (CUDA {torch.version.cuda}) finds no device or no driver"
    return ""


def _triton() -> Backend:
    from ..common.backend import interpreted

    if importlib.util.find_spec("triton") is None:
        return Backend(False, "triton is not installed: pip install 'tamis[triton]'")
    if interpreted():
        return Backend(True, "interpreted on CPU tensors (TRITON_INTERPRET=1): for tests")
    missing = _device()
    return Backend(not missing, missing or f"triton {_version('triton')}")


def _cuda() -> Backend:
    built = _cuda_libraries()
    if not built:
        return Backend(False, "not built: no nvcc where tamis was built, or TAMIS_CUDA=off")
    missing = _device()
    return Backend(not missing, missing or ", ".join(built))


def _cuda_libraries() -> list[str]:
    return sorted(p.name for p in Path(__file__).parents[1].glob("_ops_cuda*.so"))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, str]]:
    import torch

    if _device():
        return []
    found = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        found.append({"name": p.name, "capability": f"{p.major}.{p.minor}", "memory": f"{p.total_memory / 1e9:.0f} GB"})
    return found


def _driver() -> str | None:
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return None


def _native() -> dict[str, Any]:
    try:
        from .. import _native
        from ..bench.machine import cache_sizes

        return {**_native.isa_report(), "caches": cache_sizes()}
    except ImportError as error:
        return {"missing": str(error)}


def examination() -> dict[str, Any]:
    """Everything doctor knows, as JSON takes it."""
    import torch

    import tamis

    from ..bench.machine import allocator_mode, commit, environment, huge_pages

    native = _native()
    live = backends()
    return {
        "tamis": {"version": tamis.__version__, "commit": commit(), "path": str(Path(tamis.__file__).parent)},
        "built": {
            "isa": native.get("compiled", []),
            "cuda": _cuda_libraries(),
            "torch": "stable ABI of 2.10 and later",
        },
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()},
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in ("triton", "numpy", "safetensors", "transformers", "cupy")},
        "cpu": native,
        "backends": {name: b._asdict() for name, b in live.items()},
        "devices": _devices(),
        "driver": _driver(),
        "memory": {
            "allocator": allocator_mode(),
            "huge_pages": huge_pages(),
            "advised": os.environ.get("TAMIS_HUGE_PAGES", "1") != "0",
        },
        "environment": environment(),
    }


def doctor(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """What was built, which instruction set and backends run here, and why others do not."""
    found = examination()
    if json:
        typer.echo(json_module.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in lines(found):
        table.add_row(name, Text(text))  # what is in brackets is no markup
    Console().print(table)


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of `examination`, what a person wants to read."""
    cpu, built, memory = found["cpu"], found["built"], found["memory"]
    features = [name for name, has in cpu.get("features", {}).items() if has]
    torch = found["torch"]
    rows = [
        ("tamis", f"{found['tamis']['version']} at {found['tamis']['commit']}, {found['tamis']['path']}"),
        ("built", f"CPU {', '.join(built['isa'])}; CUDA {', '.join(built['cuda']) or 'no'}; torch {built['torch']}"),
        ("torch", f"{torch['version']}, CUDA {torch['cuda'] or 'no'}, {torch['threads']} threads"),
        ("python", f"{found['python']}, {found['system']}"),
        ("processor", cpu.get("missing") or f"{cpu['cpu']}: runs {', '.join(cpu['runs'])}"),
        ("features", " ".join(features)),
        ("caches", ", ".join(f"{k} {v >> 10} KiB" for k, v in cpu.get("caches", {}).items())),
    ]
    rows += [(name, f"{'live' if b['live'] else 'off'}: {b['reason']}") for name, b in found["backends"].items()]
    rows += [("device", f"{d['name']}, sm {d['capability']}, {d['memory']}") for d in found["devices"]]
    rows += [("driver", found["driver"])] if found["driver"] else []
    rows.append(("allocator", memory["allocator"]))
    advised = "advised" if memory["advised"] else "not advised"
    rows.append(("huge pages", f"{memory['huge_pages']}; {advised} for large results and indexes"))
    if found["environment"]:
        rows.append(("environment", " ".join(f"{k}={v}" for k, v in found["environment"].items())))
    return rows
