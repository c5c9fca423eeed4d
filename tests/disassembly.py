"""What a compiled library's functions became."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest


@cache
def disassembly(library: str | Path) -> dict[str, str]:
    """{function: its instructions, a line each}, of tamis's own functions; skips where nothing can be seen."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    command = ["objdump", "-dC", "--no-show-raw-insn", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = dict(re.findall(r"^[0-9a-f]+ <(.*\btamis::\w+::.*)>:\n((?:.+\n)*)", text, re.MULTILINE))
    if not functions:
        pytest.skip("the library is stripped of its symbols")
    return functions
