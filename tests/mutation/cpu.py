"""Mutation run over the tails of the CPU kernels (tails.py): asks the drivers of tests/sanitize to notice each.

    python -m mutation.cpu [--only FILE] [--every N] [--marked]     in tests/

All mutants are compiled at once, each behind a number that the process reads: a place costs a run, not a compilation.
Exit 1 where a mutant survives unmarked, where a mark is not needed, or where more than 5% of the places carry one.
"""

import hashlib
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .mutants import ROOT, Mutant, Tell, command, judge
from .tails import mutants, sources

COMPILER = os.environ.get("CXX", "g++")
HERE = ROOT / "tests" / "sanitize"
# Of tests/sanitize, and the kernels that each drives; the quick ones first.
DRIVERS = {
    "encode": "ann/cpu_[aer]*.cpp",
    "collect": "ann/collect*.cpp",  # the header alone
    "search": "ann/cpu_s*.cpp",
    "draw": "sampling/cpu_*.cpp",
    "choose": "sparse_mlp/cpu_*.cpp",
    "mlp": "sparse_mlp/cpu_*.cpp",
    "topk": "sparse_mlp/cpu_*.cpp",
    "sampling": "sampling/cpu_*.cpp",
    "distill": "distill/cpu_*.cpp",
}
COMMON = ["-std=c++17", "-g1", "-pthread", "-O1", "-Wno-psabi", "-Wno-maybe-uninitialized", "-DTAMIS_CHECKED"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LANES = {"neon": 4, "v2": 4, "v3": 8, "v4": 16}
SWITCH = """#pragma once
extern "C" int tamis_mutant;
"""
SWITCHED = """#include <stdlib.h>
extern "C" {
int tamis_mutant = 0;
}
__attribute__((constructor)) static void chosen() {
  if (const char* const given = getenv("TAMIS_MUTANT")) tamis_mutant = atoi(given);
}
"""
SECONDS = 120  # then it hangs
BUILDING = threading.Lock()


def isas() -> list[str]:
    """The two widest that run here."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["neon"]
    flags = Path("/proc/cpuinfo").read_text()
    return [isa for isa, bit in (("v4", "avx512bw"), ("v3", "avx2"), ("v2", "sse4_2")) if bit in flags][:2]


def number(mutant: Mutant) -> int:
    """The same whatever else changes, so that what was compiled stays good."""
    told = f"{mutant.file.relative_to(ROOT)} {mutant.at} {mutant.after}".encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:4], "little") >> 1


def switched(file: Path) -> str:
    """With every mutant in it; one is chosen when it runs."""
    text = file.read_text()
    spans: dict[tuple[int, int], list[Mutant]] = {}
    for m in mutants(file):
        spans.setdefault((m.at, m.at + len(m.before)), []).append(m)

    def build(begin: int, end: int, inside: list[tuple[int, int]]) -> str:
        made, at = "", begin
        while inside:
            first = inside[0]
            within = [span for span in inside[1:] if span[1] <= first[1] and span[0] < first[1]]
            inside = [span for span in inside[1:] if span not in within]
            one = build(*first, within)
            made += text[at : first[0]] + _choice(one, spans[first])
            at = first[1]
        return made + text[at:end]

    return build(0, len(text), sorted(spans, key=lambda span: (span[0], -span[1])))


def _choice(text: str, choices: list[Mutant]) -> str:
    inserted = not text  # an argument in a default's place
    condition = any(m.kind in ("check", "loop") for m in choices)
    made = "-kInf" if inserted else f"bool({text})" if condition else f"({text})"
    for m in choices:
        made = f"(tamis_mutant == {number(m)} ? {m.after.removeprefix(', ')} : {made})"
    return ", " + made if inserted else made


@cache
def included(file: Path) -> frozenset[Path]:
    """What a file is made of."""
    found = {file}
    for name in re.findall(r'^#include "(.*)"', file.read_text(), re.M):
        found |= included((file.parent / name).resolve())
    return frozenset(found)


def units(driver: str) -> list[Path]:
    return [HERE / f"{driver}.cpp", *sorted((ROOT / "kernels").glob(DRIVERS[driver]))]


def folder() -> Path:
    made = ROOT / "build" / "mutation"
    try:
        made.mkdir(parents=True, exist_ok=True)
    except OSError:  # a tree that cannot be written to
        made = Path(tempfile.gettempdir()) / f"mutation-{os.getuid()}"
        made.mkdir(exist_ok=True)
    return made


def _write(file: Path, text: str) -> None:
    if not file.exists() or file.read_text() != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_text(text)
        partial.replace(file)


def _compile(made: Path, arguments: list[str]) -> Path:
    if not made.exists():
        partial = made.with_name(f"{made.name}.{os.getpid()}")
        done = subprocess.run([COMPILER, *arguments, "-o", str(partial)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{COMPILER} {' '.join(arguments)}:\n{done.stderr[:3000]}")
        partial.replace(made)
    return made


@cache
def tree() -> Path:
    """The kernels with all mutants in them, beside their drivers."""
    digest = hashlib.sha256()
    texts = {file.relative_to(ROOT): switched(file) for file in sources()}
    texts |= {file.relative_to(ROOT): file.read_text() for file in sorted(HERE.glob("*.*"))}
    texts |= {Path("switch.h"): SWITCH, Path("switched.cpp"): SWITCHED}
    for name, text in texts.items():
        digest.update(f"{name} {text}".encode())
    made = folder() / digest.hexdigest()[:16]
    for name, text in texts.items():
        _write(made / name, text)
    return made


def build(driver: str, isa: str, address: bool) -> Path:
    """Of the sources with every mutant in them; it must pass as they are."""
    with BUILDING:
        return _built(driver, isa, address)


@cache
def _built(driver: str, isa: str, address: bool) -> Path:
    flags = [
        *COMMON,
        f"-DTAMIS_ISA={isa}",
        f"-DTAMIS_LANES={LANES[isa]}",
        "-DTAMIS_STOP",
        *(ADDRESS if address else []),
    ]
    flags += [] if isa == "neon" else [f"-march=x86-64-{isa}"]
    flags += ["-ffp-contract=off" if DRIVERS[driver].startswith("sampling") else "-ffp-contract=fast"]
    if simde := find_spec("simde_py"):
        flags += ["-isystem", f"{(simde.submodule_search_locations or [''])[0]}/simde"]
    root = tree()

    def unit(file: Path) -> Path:
        digest = hashlib.sha256(repr((COMPILER, flags)).encode())
        for part in sorted(included(file)):
            digest.update((root / part.relative_to(ROOT)).read_bytes())
        made = folder() / f"{file.parent.name}-{file.stem}-{digest.hexdigest()[:16]}.o"
        source = str(root / file.relative_to(ROOT))
        return _compile(made, [*flags, "-include", str(root / "switch.h"), "-c", source])

    with ThreadPoolExecutor(2) as pool:
        objects = list(map(str, pool.map(unit, units(driver))))
    made = folder() / f"{driver}-{hashlib.sha256(repr((flags, objects)).encode()).hexdigest()[:16]}"
    _compile(made, [*flags, str(root / "switched.cpp"), *objects])
    if why := fails(made, 0):
        raise RuntimeError(f"the sources fail as they are: {made}: {why}")
    return made


def fails(made: Path, mutant: int) -> str:
    """Why it does, if it does."""
    environment = os.environ | {"TAMIS_MUTANT": str(mutant), "ASAN_OPTIONS": "detect_leaks=0"}
    try:
        done = subprocess.run([made], env=environment, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "hanging"
    if b"Sanitizer" in done.stderr or b"runtime error" in done.stderr:
        return "sanitizer"
    signals = {signal.SIGILL: "promise", signal.SIGTRAP: "promise", signal.SIGSEGV: "guard", signal.SIGBUS: "guard"}
    return "" if done.returncode == 0 else signals.get(-done.returncode, "abort" if done.returncode < 0 else "numbers")


def ways() -> list[tuple[str, bool]]:
    return [*((isa, False) for isa in isas()), (isas()[0], True)]


def run(only: str = "", every: int = 1, marked: bool | None = None, tell: Tell = print) -> list[str]:
    """What is wrong, a line each. `every`: one place of so many; `marked`: those alone that are, or
    that are not."""
    places = [m for file in sources() if only in str(file) for m in mutants(file)]
    numbers = {number(m) for m in places}
    assert len(numbers) == len(places) and 0 not in numbers

    def drivers(mutant: Mutant) -> list[str]:
        return [driver for driver in DRIVERS if any(mutant.file in included(file) for file in units(driver))]

    def noticed(mutant: Mutant) -> str:
        for isa, address in ways():
            for driver in drivers(mutant):
                if why := fails(build(driver, isa, address), number(mutant)):
                    return why
        return ""

    chosen = [m for m in places[::every] if marked in (None, m.marked)]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(noticed, chosen)
        return judge(places, chosen, lambda mutant: next(found), tell, not only)


if __name__ == "__main__":
    sys.exit(command(run, __doc__))
