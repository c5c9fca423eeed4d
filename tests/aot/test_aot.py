import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import typer
from tamis.aot import Kernel, budgets, build, cuda, entries, inventory, missing, resources, triton, violations
from typer.testing import CliRunner

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
NVCC = cuda.nvcc()


def chosen():
    """One dtype a kernel and target, its richest variant; of distill_loss_kernel every divergence, for one target."""
    best = {}
    for entry in entries():
        kernel, divergence = entry.variant.kernel, getattr(entry.variant, "constants", {}).get("DIVERGENCE", 0)
        one = divergence == 0 or (kernel == "distill_loss_kernel" and entry.arch == 90)
        if entry.variant.dtype in ("bf16", "fp32") and one:
            best.setdefault((entry.family, kernel, divergence, entry.backend, entry.arch), entry)
    return [entry for entry in best.values() if entry.backend == "triton" or NVCC]


def test_every_kernel_has_an_entry():
    assert missing() == []


def test_an_unlisted_kernel_is_caught(tmp_path):
    folder = tmp_path / "kernels"
    shutil.copytree(inventory.kernels_folder().resolve(), folder)
    (folder / "distill" / "triton_new.py").write_text(
        "import triton\n@triton.jit\ndef _helper(x):\n    return x\n"
        "@triton.jit(do_not_specialize=['x'])\ndef new_kernel(x):\n    _helper(x)\n"
    )
    (folder / "common" / "cuda_new.cuh").write_text(
        "// __global__ void only_a_comment() {}\n"
        "template <int N> __global__ void __launch_bounds__(256) other_kernel(float* x) {}\n"
    )
    assert missing(folder) == ["common/other_kernel", "distill/new_kernel"]


@pytest.mark.parametrize("entry", chosen(), ids=lambda entry: entry.file)
def test_budget(entry):
    kernels = build([entry])
    assert violations(kernels, budgets.load()) == []
    loads = [op for op in kernels[0].resources.opcodes if op.startswith("LDG") and op.endswith(("128", "256"))]
    one_a_row = entry.variant.kernel in ("divisor_kernel", "row_sum_kernel", "topk_sort_kernel")
    assert loads or one_a_row or getattr(entry.variant, "module", "") == "triton_draw"  # or one an example


@pytest.mark.parametrize("entry", chosen(), ids=lambda entry: entry.file)
def test_declared_threads_are_the_cubins(entry):
    """Where it says them: Triton's do, and those with launch bounds."""
    (kernel,) = build([entry])
    said = resources._tool("cuobjdump", "-elf", kernel.cubin)
    found = re.findall(r"EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:\s+\w+\s+Value:\s+0x([0-9a-f]+) 0x1 0x1", said)
    assert {int(value, 16) for value in found} <= {entry.variant.threads}
    assert found or entry.variant.kernel == "scale_rows_kernel"


def test_the_sample_has_every_kernel():
    """For each architecture that the inventory claims."""
    sample = {(e.family, e.variant.kernel, e.backend, e.arch_name) for e in chosen()}
    whole = {(e.family, e.variant.kernel, e.backend, e.arch_name) for e in entries() if e.backend == "triton" or NVCC}
    assert sample == whole
    folder = inventory.kernels_folder()
    archs = {"triton": set(inventory.TRITON_ARCHS.values()), "cuda": set(inventory.CUDA_ARCHS.values())}
    there = {"triton": inventory._triton_kernels(folder), "cuda": inventory._cuda_kernels(folder) if NVCC else ()}
    assert whole == {(*k, backend, arch) for backend in there for k in there[backend] for arch in archs[backend]}


@pytest.mark.parametrize("archs", [(), ("80",), ("90", "120")])
def test_json_lists_the_inventory(archs, tmp_path, monkeypatch):
    """All of it, and nothing else; what a compilation measures is made up."""
    from tamis.cli.aot import aot

    app, cubin = typer.Typer(), tmp_path / "cubin"
    app.command()(aot)
    cubin.touch()
    made = resources.Resources(8, 0, 0, 0, dict.fromkeys(budgets.FEATURES, 1) | {"LDG.E.128": 1, "STG.E.128": 1})
    monkeypatch.setattr("tamis.aot.build", lambda wanted, *_: [Kernel(entry, cubin, made) for entry in wanted])
    monkeypatch.setattr(cuda, "nvcc", lambda: "nvcc")
    command = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "table.json"), *(f"--arch={a}" for a in archs)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "table.json").read_text())["kernels"]
    wanted = entries([int(arch) for arch in archs] or None)
    keys = [(e.variant.kernel, e.family, e.backend, e.arch_name, e.file) for e in wanted]
    assert [(r["name"], r["family"], r["backend"], r["arch"], r["file"]) for r in rows] == keys
    assert len({row["file"] for row in rows}) == len(rows) > 0
    assert all(0 < row["occupancy"] <= 100 for row in rows)


def test_nothing_to_compile_is_no_success(monkeypatch, tmp_path):
    """sm_120 has CUDA C++ alone."""
    from tamis.cli.aot import aot

    app = typer.Typer()
    app.command()(aot)
    monkeypatch.setattr(cuda, "nvcc", lambda: None)
    done = CliRunner().invoke(app, ["--arch=120", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "expected nvcc: all kernels for 120 are CUDA C++" in done.output


def test_assertions_are_compiled_for_debugging_alone():
    entry = next(e for e in chosen() if e.variant.kernel == "distill_loss_kernel")
    assert b"__assertfail" not in triton.compile(entry)[0]
    assert b"__assertfail" in triton.compile(entry, debug=True)[0]


def test_a_budget_is_enforced():
    (kernel, *_) = build([e for e in chosen() if e.backend == "triton"][:1])
    table = budgets.load()
    row = table[f"{kernel.entry.family}/{kernel.entry.variant.kernel}"]
    row["registers"][kernel.entry.variant.dtype][kernel.entry.arch_name] = 8
    row["shared"], row["occupancy"] = -1, 101
    found = violations([kernel], table)
    assert len(found) == 3
    assert "expected at most 8 registers" in found[0]
    assert "expected an occupancy of at least 101%" in found[2]
    assert "expected a budget" in violations([kernel], {})[0]


@pytest.mark.parametrize("row", list(budgets.load()))
def test_budgets_have_a_floor_of_occupancy(row):
    assert 0 < budgets.load()[row]["occupancy"] <= 100


@pytest.mark.parametrize("row", list(budgets.load()))
def test_budgets_ask_for_wide_loads_where_rows_are_read(row):
    walk_rows = (
        "distill_loss_kernel", "distill_tile_kernel", "topk_distill_loss_kernel", "deviation_stats_kernel",
        "scale_rows_kernel", "distill_rows_kernel", "softmax_stats_kernel", "softmax_stats_backward_kernel",
        "disagreement_kernel", "topk_row_kernel", "topk_digits_kernel", "topk_count_kernel", "topk_write_kernel",
        "gaussian_topk_kernel", "gaussian_topk_backward_kernel", "topk_mlp_rank_kernel", "topk_mlp_entries_kernel",
        "topk_mlp_gather_kernel", "topk_mlp_slope_kernel", "project_kernel", "gather_rows_kernel",
    )  # fmt: skip
    assert ("LDG.128" in budgets.load()[row]["sass"]) == (row.split("/")[1] in walk_rows)


def test_command(tmp_path):
    """From another directory, one architecture; the second run takes everything from the cache."""
    program = (
        "import sys, typer, tamis.aot.inventory as i\n"
        "every = i.entries\n"
        "i.entries = lambda archs=None: [e for e in every(archs) if e.variant.kernel == 'row_sum_kernel']\n"
        "i.missing = lambda: []\n"
        "from tamis.cli.aot import aot\n"
        "typer.run(aot)\n"
    )
    command = [sys.executable, "-c", program, "--arch", "80", "--out", "cubins", "--json", "table.json", "--jobs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["kernels"]
    assert {row["name"] for row in rows} == {"row_sum_kernel"}
    assert len({row["file"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row)[:8] == ["name", "family", "backend", "arch", "registers", "spills", "shared", "file"]
        assert list(row)[8:] == ["threads", "occupancy"]
        assert (tmp_path / "cubins" / row["file"]).read_bytes()[:4] == b"\x7fELF"
        assert row["spills"] == 0
    command[2] = program.replace("i.missing = lambda: []", "i.missing = lambda: ['ann/new_kernel']")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ann/new_kernel: expected a variant" in done.stderr
