"""Every family's Triton kernels, in the interpreter: a process for each, which imports once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FILES = sorted(Path(__file__).parents[1].glob("*/test_triton*.py"))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs what is interpreted")
@pytest.mark.parametrize("family", sorted({file.parent.name for file in FILES}))
def test_in_the_interpreter(family):
    files = [str(file) for file in FILES if file.parent.name == family]
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", *files]
    done = subprocess.run(run, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
