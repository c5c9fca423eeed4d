"""Mutation run: changes each place of the CUDA sources in turn, in a copy, and asks the emulated suite to notice.

    python -m cuda_emulator.mutate [--only FILE] [--every N] [--marked]     in tests/

Exit 1 where a mutant survives unmarked, where a mark is not needed, or where more than 5% of the places carry one.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import given as drawn
from mutation.mutants import Mutant, Tell, command, judge

from .build import ROOT, TREE, compile_library, headers, sanitizer_environment
from .emulator import Library
from .families import FAMILIES
from .launches import LAUNCHES
from .mutants import mutants

EXAMPLES = 100
SECONDS = 60  # then it hangs


def notices(driver: str, root: Path) -> str:
    """What notices the tree at `root`, if anything: the compiler, the checked build, then the sanitizers."""
    for mode, run in (("checked", _in_a_child), ("sanitized", _sanitized)):
        made = root / f"{driver}-{mode}.so"
        try:
            compile_library(driver, mode, root, made)
        except RuntimeError:
            return "compiler"
        if run(driver, made):
            return mode
    return ""


def _sanitized(driver: str, made: Path) -> bool:
    environment = sanitizer_environment()
    program = "import sys; from pathlib import Path; from cuda_emulator.mutate import suite; "
    command = [sys.executable, "-c", program + "suite(sys.argv[1], Path(sys.argv[2]), 10)", driver, str(made)]
    try:
        return environment is not None and bool(
            subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS).returncode
        )
    except subprocess.TimeoutExpired:
        return True


def suite(driver: str, made: Path, examples: int = EXAMPLES) -> None:
    warnings.simplefilter("ignore")
    lib = Library.load(made)
    LAUNCHES[driver](lib)
    for kernels in FAMILIES.values():
        if kernels.driver != driver:
            continue
        for case in kernels.edges:
            kernels.check(lib, case)

        @settings(max_examples=examples, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
        @drawn(case=kernels.cases)
        def check(check_case: Callable[..., None], case: object) -> None:
            check_case(lib, case)

        check(kernels.check)


def _in_a_child(driver: str, made: Path) -> bool:
    """A mutant may crash, or hang."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(SECONDS)
        try:
            suite(driver, made)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def noticed(mutant: Mutant | None, drivers: Iterable[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for pattern in TREE:
            for file in ROOT.glob(pattern):
                copy = root / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        if mutant:
            (root / mutant.file.relative_to(ROOT)).write_text(mutant.text())
        return next(filter(None, (notices(driver, root) for driver in drivers)), "")


def cuda_sources() -> list[Path]:
    """The kernels, and what launches them."""
    return sorted([*(ROOT / "kernels").rglob("*.cuh"), *(ROOT / "csrc").glob("*.cu"), ROOT / "csrc" / "launch.h"])


def run(only: str = "", every: int = 1, marked: bool | None = None, tell: Tell = print) -> list[str]:
    """What is wrong, a line each. `every`: one place of so many; `marked`: those alone that are, or
    that are not."""
    used = {driver: headers(driver) for driver in sorted({kernels.driver for kernels in FAMILIES.values()})}
    places = [m for file in cuda_sources() for m in mutants(file) if only in str(file)]
    if every == 1 and noticed(None, used):  # beside a sample the suite itself runs
        return ["the sources fail as they are"]

    def notice(mutant: Mutant) -> str:
        return noticed(mutant, [driver for driver, files in used.items() if mutant.file in files])

    return judge(places, [m for m in places[::every] if marked in (None, m.marked)], notice, tell, not only)


if __name__ == "__main__":
    sys.exit(command(run, __doc__))
