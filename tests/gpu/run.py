"""`make gpu-test`: everything a machine with a GPU can show, in one report: python tests/gpu/run.py [--dry-run]

In the environment that runs it, whose torch must be a CUDA build. The stages share a budget of time; one that fails or
overruns is reported, and the others still run. Only the standard library is needed to find a GPU and to list.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 570.0  # seconds
GRACE = 10.0  # to end in, for a stage that overran
BUILDING = ("TAMIS_BUILD_DIR", "TAMIS_TESTING")  # nothing that a figure depends on
TAIL = 40  # lines of what a stage says that are kept
HEADER = ("cpu", "cores", "isa", "huge_pages", "torch", "tamis", "commit", "date")  # as every result's
BENCHES = (  # family, its cases, share
    ("distill", "^distill_loss (dispatch|forward.backward 512x32000 )", 70),
    ("distill", "^linear_distill_loss ", 50),
    ("sampling", "^softmax_stats (dispatch|.* 512x32000) |^disagreement jsd|^importance_sample race", 50),
    ("sparse_mlp", "^topk |^gaussian_topk ", 20),
    ("sparse_mlp", r"^topk_mlp (forward \d+x2048x|training)", 30),
)


class Device(NamedTuple):
    name: str
    capability: str  # as 9.0
    driver: str

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def architecture(self) -> str:
        number = self.capability.replace(".", "")
        return f"{number}a-real" if number == "90" else f"{number}-real"


class Stage(NamedTuple):
    name: str
    command: Sequence[str]
    share: float  # of the budget, in proportion
    environment: Mapping[str, str] = MappingProxyType({})
    result: Path | None = None  # a result of tamis bench that it leaves

    @property
    def absent(self) -> bool:
        """Whether its tool is not here."""
        return shutil.which(self.command[0]) is None


def find() -> Device | None:
    """The first that torch would see."""
    query = ["--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    if first := os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]:
        query += ["-i", first]
    try:
        said = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=True, timeout=60).stdout
        return Device(*(word.strip() for word in said.splitlines()[0].split(",")))
    except (OSError, subprocess.SubprocessError, IndexError, TypeError):
        return None


def stages(device: Device | None, folder: Path) -> Iterator[Stage]:
    python = sys.executable
    built = {"CUDAARCHS": device.architecture if device else "native", "TAMIS_TESTING": "ON"}
    built |= {name: os.environ[name] for name in BUILDING if name in os.environ}
    yield Stage("build", [python, "setup.py", "-q", "build_ext", "--inplace"], 110, built)
    yield Stage("alive", [python, "tests/gpu/alive.py"], 20)
    yield Stage("ops", [python, "-m", "pytest", "tests/gpu", "-n", "4"], 110)
    for i, (family, cases, share) in enumerate(BENCHES):
        out = folder / f"{i}.json"
        bench = [python, "-m", "tamis.cli", "bench", family, "--device", "cuda", "--peers", "--seconds", "2"]
        yield Stage(f"bench {family}", [*bench, "--only", cases, "--json", str(out)], share, result=out)
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    name = "compute-sanitizer"
    sanitizer = shutil.which(name) or shutil.which(name, path=f"{toolkit}/bin") or name
    watch = ["--error-exitcode", "1", "--target-processes", "all", python, "-m", "gpu.program"]
    for tool in ("memcheck", "racecheck", "synccheck"):
        yield Stage(tool, [sanitizer, "--tool", tool, *watch], 40, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    rest = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal", "--ignore", "tests/gpu"]
    yield Stage("suite", [python, "-m", "pytest", *rest], 140)


def limits(found: Sequence[Stage], budget: float) -> Iterator[float]:
    """Seconds that each may take, asked for as it starts: what is left, by the shares of those that are left."""
    end = time.monotonic() + budget
    for i, stage in enumerate(found):
        yield (end - time.monotonic()) * stage.share / sum(s.share for s in found[i:])


def perform(stage: Stage, limit: float) -> dict[str, Any]:
    """passed, failed, overran or absent; how long; its last words."""
    row: dict[str, Any] = {"stage": stage.name, "limit_s": round(limit, 1)}
    if stage.absent:
        return row | {"status": "absent", "seconds": 0.0, "tail": []}
    paths = [str(ROOT / "tests"), str(ROOT / "pysrc"), os.environ.get("PYTHONPATH")]
    environment = {k: v for k, v in os.environ.items() if k not in BUILDING} | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the tests ask torch to be deterministic
        **stage.environment,
    }
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )  # fmt: skip
        try:
            status = "failed" if process.wait(max(limit, 0.0)) else "passed"
        except subprocess.TimeoutExpired:
            status = "overran"
            process.send_signal(signal.SIGINT)  # pytest then says what has failed so far
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it may have left
        process.wait()
        said.seek(0)
        tail = [re.sub(rf"{re.escape(str(ROOT))}/?|{re.escape(sys.prefix)}/?", "", x) for x in said.read().splitlines()]
    return row | {"status": status, "seconds": round(time.monotonic() - start, 1), "tail": tail[-TAIL:]}


def gathered(found: Sequence[Stage], device: Device, rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """A result of tamis bench, with whatever was measured, and the stages."""
    header: dict[str, Any] = dict.fromkeys(HEADER, "unknown")
    header |= {"device": device.name, "capability": device.capability, "driver": device.driver, "cuda": "unknown"}
    header["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    report: dict[str, Any] = {"schema": 1, "header": header, "rows": []}
    for stage in found:
        if stage.result and stage.result.exists():
            part = json.loads(stage.result.read_text())
            header |= part["header"]
            report["rows"] += part["rows"]
    report["gpu_test"] = {
        "passed": all(r["status"] in ("passed", "absent") for r in rows),
        "seconds": round(seconds, 1),
    }
    report["gpu_test"]["stages"] = rows
    return report


def page(report: dict[str, Any]) -> str:
    header, test = report["header"], report["gpu_test"]
    lines = [f"# {header['device']}", "", "Made by `make gpu-test`; do not edit.", ""]
    lines += [f"Compute capability {header['capability']}, driver {header['driver']}, torch {header['torch']}, "]
    lines[-1] += f"tamis {header['tamis']} at {header['commit']}, {header['date']}; {test['seconds']} s."
    lines += ["", "| stage | | seconds | of at most | last words |", "| --- | --- | ---: | ---: | --- |"]
    for row in test["stages"]:
        last = next((line for line in reversed(row["tail"]) if re.search(r"\w", line)), "").replace("|", "\\|")[:160]
        lines.append(f"| {row['stage']} | {row['status']} | {row['seconds']} | {row['limit_s']} | {last} |")
    for row in test["stages"]:
        if row["status"] in ("failed", "overran"):
            lines += ["", f"## {row['stage']}: {row['status']}", "", "```", *row["tail"], "```"]
    if report["rows"]:
        sys.path.insert(0, str(ROOT / "pysrc"))
        from tamis.bench.report import tables
        from tamis.bench.table import legend, machine

        lines += ["", "## Benchmarks", "", machine(header), "", legend(header), "", *tables(report["rows"])]
    return "\n".join(lines).rstrip("\n") + "\n"


def run(found: Sequence[Stage], device: Device, out: Path, budget: float = BUDGET) -> int:
    start, rows = time.monotonic(), []
    for stage, limit in zip(found, limits(found, budget), strict=True):
        print(f"{stage.name}: at most {limit:.0f} s", flush=True)
        rows.append(perform(stage, limit))
        print(f"{stage.name}: {rows[-1]['status']} in {rows[-1]['seconds']} s", flush=True)
    report = gathered(found, device, rows, time.monotonic() - start)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{device.slug}.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / f"{device.slug}.md").write_text(page(report))
    print(f"{out / device.slug}.json, .md")
    return 0 if report["gpu_test"]["passed"] else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Test and measure tamis on this machine's GPU.")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    parser.add_argument("--find", action="store_true", help="only look for a GPU")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="where the report goes")
    given = parser.parse_args()
    device = find()
    with tempfile.TemporaryDirectory() as folder:
        found = list(stages(device, Path(folder)))
        if given.dry_run:
            print(f"device: {' '.join(device) if device else 'none found by nvidia-smi'}")
            for stage in found:
                share = given.budget * stage.share / sum(s.share for s in found)
                words = [f"{k}={v}" for k, v in stage.environment.items()] + [shlex.quote(w) for w in stage.command]
                absent = "  # its tool is not here" if stage.absent else ""
                print(f"{stage.name}, {share:.0f} s: {' '.join(words)}{absent}")
            print(f"report: {given.out / (device.slug if device else '<device>')}.json, .md")
            return 0
        if device is None:
            print(
                "tests/gpu/run.py: expected a GPU, nvidia-smi finds none; --dry-run lists what would run",
                file=sys.stderr,
            )
            return 2
        return 0 if given.find else run(found, device, given.out, given.budget)


if __name__ == "__main__":
    sys.exit(main())
