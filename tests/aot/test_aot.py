import json
import os
import shutil
import subprocess
import sys

import pytest
from tamis.aot import budgets, build, cuda, entries, inventory, missing, triton, violations

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")


def chosen():
    """One dtype a kernel and target, its richest variant; of distill_loss_kernel every divergence, for one target."""
    best = {}
    for entry in entries():
        kernel, divergence = entry.variant.kernel, getattr(entry.variant, "constants", {}).get("DIVERGENCE", 0)
        one = divergence == 0 or (kernel == "distill_loss_kernel" and entry.arch == 90)
        if entry.variant.dtype in ("bf16", "fp32") and one:
            best.setdefault((entry.family, kernel, divergence, entry.backend, entry.arch), entry)
    return [entry for entry in best.values() if entry.backend == "triton" or cuda.nvcc()]


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


def test_assertions_are_compiled_for_debugging_alone():
    entry = next(e for e in chosen() if e.variant.kernel == "distill_loss_kernel")
    assert b"__assertfail" not in triton.compile(entry)[0]
    assert b"__assertfail" in triton.compile(entry, debug=True)[0]


def test_a_budget_is_enforced():
    (kernel, *_) = build([e for e in chosen() if e.backend == "triton"][:1])
    table = budgets.load()
    row = table[f"{kernel.entry.family}/{kernel.entry.variant.kernel}"]
    row["registers"][kernel.entry.variant.dtype][kernel.entry.arch_name] = 8
    row["shared"] = -1
    found = violations([kernel], table)
    assert len(found) == 2
    assert "expected at most 8 registers" in found[0]
    assert "expected a budget" in violations([kernel], {})[0]


@pytest.mark.parametrize("row", list(budgets.load()))
def test_budgets_ask_for_wide_loads_where_rows_are_read(row):
    walk_rows = (
        "distill_loss_kernel", "distill_tile_kernel", "topk_distill_loss_kernel", "deviation_stats_kernel",
        "scale_rows_kernel", "distill_rows_kernel", "softmax_stats_kernel", "softmax_stats_backward_kernel",
        "disagreement_kernel", "topk_row_kernel", "topk_digits_kernel", "topk_count_kernel", "topk_write_kernel",
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
        assert list(row) == ["name", "family", "backend", "arch", "registers", "spills", "shared", "file"]
        assert (tmp_path / "cubins" / row["file"]).read_bytes()[:4] == b"\x7fELF"
        assert row["spills"] == 0
    command[2] = program.replace("i.missing = lambda: []", "i.missing = lambda: ['ann/new_kernel']")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ann/new_kernel: expected a variant" in done.stderr
