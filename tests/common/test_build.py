import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import simde_py
import tamis

ROOT = Path(__file__).parents[2]
PACKAGE = Path(tamis.__file__).parent
LANES = {"v2": 4, "v4": 16}
SIMDE = Path(simde_py.__file__).parent / "simde"
# What a shipped library may take from outside: torch's C shims, the C and C++ runtimes, and the dynamic linker's own.
ALLOWED = re.compile(
    r"^(aoti_torch_\w+|torch_\w+|cuda\w*"
    r"|_ZNSo\w+|_ZNSt\w+|_ZNKSt\w+|_ZSt\w+|_ZTVN10__cxxabiv1\w+|_ZTISt\w+|_ZTVSt\w+|_Zn[wa]m|_Zd[la]Pv\w*|__cxa_\w+|__gxx_personality_v0"
    r"|_Unwind_\w+|__stack_chk_fail|__tls_get_addr|__(cpu_model|cpu_indicator_init)|_ITM_\w+|__gmon_start__"
    r"|_ZTTNSt\w+|_ZTVNSt\w+)$"
)


@pytest.mark.skipif(not Path("/usr/bin/g++").exists(), reason="needs g++")
@pytest.mark.parametrize("isa", LANES)
@pytest.mark.parametrize("source", sorted(ROOT.glob("kernels/[!c]*/cpu*.cpp")), ids=lambda path: path.stem)
def test_kernels_share_no_weak_symbol(source, isa, tmp_path):
    """Of one weak symbol in two ISAs the linker keeps either: AVX-512 code would reach every machine. -O0 inlines
    nothing, as a sanitizer's build: what is weak shows."""
    flags = [
        "-O0",
        "-isystem",
        SIMDE,
        f"-march=x86-64-{isa}",
        f"-DTAMIS_ISA={isa}",
        f"-DTAMIS_LANES={LANES[isa]}",
        "-Wno-psabi",
    ]
    subprocess.run(["g++", "-std=c++17", *flags, "-c", source, "-o", tmp_path / "cpu.o"], check=True)
    symbols = subprocess.run(["nm", "-C", tmp_path / "cpu.o"], check=True, capture_output=True, text=True).stdout
    weak = [line for line in symbols.splitlines() if line[17:18] in "WwVvu"]
    assert all(f"tamis::{isa}::" in line for line in weak), weak
    assert weak  # the test sees something


@pytest.mark.parametrize("library", sorted(PACKAGE.glob("_ops*.so")), ids=lambda path: path.stem)
def test_libraries_use_the_stable_abi_alone(library):
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True
    ).stdout
    names = [line.split()[-1] for line in listed.splitlines()]
    versioned = {name.split("@")[0] for name in names if "@GLIBC_" in name}  # libc and libm, by their version
    foreign = {name.split("@")[0] for name in names} - versioned
    assert len(foreign) > 10
    assert not (bad := sorted(name for name in foreign if not ALLOWED.match(name))), bad
    assert not any(re.search(r"_ZNK?(2at|3c10|5torch)", name) for name in foreign)


@pytest.mark.skipif(shutil.which("make") is None or not (ROOT / ".git").exists(), reason="needs make and a checkout")
def test_another_torch_is_installed_again(tmp_path):
    """Into the environment that is there; only where it is another."""

    def steps(torch, venv):
        command = ["make", "-n", "build", f"TORCH={torch}", f"VENV={venv}"]
        environment = {k: v for k, v in os.environ.items() if k != "MAKEFLAGS"}  # of `make test TORCH=...`
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    (tmp_path / "torch").write_text("torch==2.13.0\n")
    (tmp_path / "installed").touch()
    assert "pip install" not in steps("torch==2.13.0", tmp_path)
    assert "pip install -q --no-compile 'torch==2.14.1'" in steps("torch==2.14.1", tmp_path)
    assert "pip install" in steps("torch==2.13.0", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def python(code, **environment):
    run = [sys.executable, "-c", "import sys, tamis, torch; " + code]
    return subprocess.run(run, env=os.environ | environment, capture_output=True, text=True)


def test_instruction_set_is_chosen_or_refused():
    assert python("print(torch.ops.tamis._isa())", TAMIS_ISA="v2").stdout == "v2\n"
    assert "expected one of" in python("torch.ops.tamis._isa()", TAMIS_ISA="v9").stderr


def test_import_is_light():
    heavy = ["triton", "matplotlib", "typer", "transformers", "sklearn", "scipy", "cupy", "rich"]
    done = python(f"print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr
    assert tamis.__version__
    assert (PACKAGE / "py.typed").exists()
