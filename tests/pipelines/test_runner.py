"""The runner: claims and their intervals, parts that are kept, what a run leaves behind, and the command."""

import csv
import json
import sys
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import typer
from tamis.cli import reproduce as command
from tamis.cli.data import data as data_command
from tamis.pipelines import data, pages, runner
from tamis.pipelines.claims import Claim, Measured, claims, exact, normal, over_seeds, papers, share, student
from tamis.pipelines.data import Dataset, MissingData
from tamis.pipelines.runner import Part, PartFailed, Pipeline
from typer.testing import CliRunner

NAN, INF = float("nan"), float("inf")


def claim(relation, threshold):
    return Claim("x", "", "", relation, threshold, ("s",), "abstract", "holds")


@pytest.mark.parametrize(
    ("relation", "threshold", "interval", "holds"),
    [
        (">", 0, (0.1, 2), True),
        (">", 0, (0.0, 2), False),
        (">", 0, (-1, 2), False),
        ("<", 1, (0.1, 0.9), True),
        ("<", 1, (0.1, 1.0), False),
        ("within", (-1.0, 1.0), (-1.0, 1.0), True),
        ("within", (-1.0, 1.0), (-1.1, 0.0), False),
        ("within", (-1.0, 1.0), (0.0, 1.1), False),
        (">", 0, (NAN, NAN), False),
        ("<", 0, (NAN, NAN), False),
        ("within", (-1.0, 1.0), (NAN, NAN), False),
    ],
)
def test_a_claim_holds_when_its_whole_interval_does(relation, threshold, interval, holds):
    assert claim(relation, threshold).holds(Measured(0.5, interval)) is holds


def test_every_paper_has_claims_that_can_be_decided():
    assert len(papers()) == 10
    for paper in papers():
        for entry in claims(paper):
            assert (entry.relation == "within") == isinstance(entry.threshold, tuple)
            assert entry.relation in (">", "<", "within")
            assert set(entry.setting) <= papers()[paper]["settings"].keys()


def test_intervals():
    # t of 4 degrees at 97.5%: 2.776445; mean 3, deviation sqrt(2.5)
    low, high = student([1, 2, 3, 4, 5])
    assert low == pytest.approx(3 - 2.776445 * (2.5 / 5) ** 0.5, rel=1e-6) and high == pytest.approx(6 - low)
    one = over_seeds([2.0])
    assert (one.value, one.interval, one.seeds, one.n) == (2.0, (2.0, 2.0), 1, 1)
    measured = normal(1.0, 0.5, 100)
    assert measured.interval == pytest.approx((1 - 1.959964 * 0.5, 1 + 1.959964 * 0.5)) and measured.n == 100
    # Wilson by its formula, Clopper-Pearson of no success: 1 - (alpha / 2)^(1 / n)
    z, p, n = 1.959964, 0.3, 10
    center, half = (p + z * z / 2 / n), z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    wanted = tuple((center + side * half) / (1 + z * z / n) for side in (-1, 1))
    assert share(3, 10, "wilson").interval == pytest.approx(wanted, rel=1e-5)
    assert share(0, 20, "exact").interval == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert exact(3.0).interval == (3.0, 3.0)


def test_what_is_not_finite_is_null_in_json():
    row = claim("<", 1).to_json(Measured(NAN, (-INF, INF), values=(1.0, NAN)))
    assert row["measured"] is None and row["interval"] == [None, None] and row["values"] == [1.0, None]
    assert row["holds"] is False
    json.dumps(row, allow_nan=False)


@dataclass(frozen=True)
class Settings:
    factor: int = 2


class Stop(Exception):
    pass


@pytest.fixture
def tiny(monkeypatch):
    """A pipeline of three claims and two parts, which counts what it computes; `stop` makes a part fail."""
    entries = [
        {"id": "tiny-above", "relation": ">", "threshold": 0},
        {"id": "tiny-below", "relation": "<", "threshold": 0},
        {"id": "tiny-within", "relation": "within", "threshold": [0, 10]},
    ]
    common = {"statement": "a | b", "quantity": "q", "setting": "s", "source": "derived", "expected_here": "holds"}
    paper = {"arxiv": "0000.00000", "settings": {"s": "words"}, "claims": [entry | common for entry in entries]}
    everything = papers() | {"tiny": paper}
    for module in ("claims", "runner"):
        monkeypatch.setattr(f"tamis.pipelines.{module}.papers", lambda: everything)
    computed, stop = Counter(), []

    def part(name):
        def run(settings, seed):
            computed[name, seed] += 1
            if (name, seed) in stop:
                raise Stop
            return {"value": (seed + 1) * settings.factor}

        return run

    def measure(settings, results):
        values = runner.by_seed(results, "seeded", lambda record: record["value"])
        once = runner.by_seed(results, "once", lambda record: record["value"])
        return {
            "tiny-above": over_seeds(values, words="some", extra=1.5),
            "tiny-below": over_seeds(values),
            "tiny-within": exact(once[0]),
        }

    pipeline = Pipeline(
        name="tiny",
        summary="What it says.",
        quick=Settings(),
        full=Settings(3),
        quick_seeds=2,
        full_seeds=5,
        datasets=lambda settings: ("digits",),
        parts=lambda settings: [Part("seeded", part("seeded")), Part("once", part("once"), seeded=False)],
        measure=measure,
        tables=lambda settings, results: "A table.",
        plots={"line": lambda axes, results: axes.plot([0, 1])},
    )
    monkeypatch.setitem(runner.MODULES, "tiny", "tiny")
    monkeypatch.setitem(sys.modules, "tamis.pipelines.tiny", SimpleNamespace(PIPELINE=pipeline))
    return pipeline, computed, stop


def reproduce(pipeline, out, seeds=(0, 1), mode="quick", **options):
    return runner.reproduce(pipeline, pipeline.quick, mode, seeds, out, workers=0, **options)


def test_parts_are_kept_and_an_interrupted_run_goes_on(tiny, tmp_path):
    pipeline, computed, stop = tiny
    straight = reproduce(pipeline, tmp_path / "straight")
    computed.clear()
    stop.append(("seeded", 1))
    with pytest.raises(PartFailed, match="tamis.reproduce: part seeded, seed 1: Stop") as failed:
        reproduce(pipeline, tmp_path / "cut")
    assert isinstance(failed.value.__cause__, Stop)
    stop.clear()
    seen = []
    run = reproduce(pipeline, tmp_path / "cut", report=lambda *words: seen.append(words))
    assert computed == {("seeded", 0): 1, ("seeded", 1): 2, ("once", 0): 1}
    assert seen == [(1, 3, ""), (2, 3, "seeded 1"), (3, 3, "once 0")]
    assert run.to_json()["claims"] == straight.to_json()["claims"]
    # More seeds add to what is there, in the order that was asked for; other settings start anew.
    more = reproduce(pipeline, tmp_path / "cut", seeds=(2, 0, 1))
    assert list(more.results["seeded"]) == [2, 0, 1] and computed["seeded", 0] == 1 and computed["once", 2] == 1
    varied = replace(pipeline, quick=Settings(7))
    assert reproduce(varied, tmp_path / "cut").results["seeded"][0]["value"] == 7
    assert computed["seeded", 0] == 2


def test_a_broken_part_is_computed_anew(tiny, tmp_path):
    pipeline, computed, _ = tiny
    reproduce(pipeline, tmp_path)
    (file,) = tmp_path.glob("parts/*/seeded-0.json")
    for times, broken in enumerate(('{"value": ', "null", "{}", ""), 2):
        file.write_text(broken)
        assert reproduce(pipeline, tmp_path).results["seeded"][0] == {"value": 2}
        assert computed["seeded", 0] == times


def test_what_measures_time_runs_last_and_one_by_one(tiny, tmp_path, monkeypatch):
    pipeline, _, _ = tiny
    parts = [Part("timed", lambda settings, seed: {"value": 1}, alone=True), *pipeline.parts(pipeline.quick)]
    real, calls = runner._computed, []

    def computed(pipeline, settings, jobs, workers):
        calls.append((list(jobs), workers))
        return real(pipeline, settings, jobs, 0)

    monkeypatch.setattr(runner, "_computed", computed)
    own = replace(pipeline, parts=lambda settings: parts)
    run = runner.reproduce(own, own.quick, "quick", (0, 1), tmp_path, workers=4)
    assert calls == [([("seeded", 0), ("seeded", 1), ("once", 0)], 4), ([("timed", 0), ("timed", 1)], 1)]
    assert list(run.results) == ["timed", "seeded", "once"]


def test_a_part_that_diverged_is_named_and_not_kept(tiny, tmp_path):
    pipeline, _, _ = tiny
    own = replace(pipeline, parts=lambda settings: [Part("once", lambda settings, seed: {"value": NAN})])
    with pytest.raises(PartFailed, match="part once, seed 0: ValueError: Out of range float values"):
        reproduce(own, tmp_path)
    assert not [*tmp_path.rglob("*.json")]


def test_what_only_reads_records_decides_no_part(monkeypatch):
    pipeline = runner.find("lazy-neuron")
    before = runner._fingerprint(pipeline, pipeline.quick)
    monkeypatch.setattr(runner, "READERS", ())
    assert runner._fingerprint(pipeline, pipeline.quick) != before != runner._fingerprint(pipeline, pipeline.full)


def test_one_seed_is_not_called_exact(tiny, tmp_path):
    run = reproduce(tiny[0], tmp_path, (0,))
    assert [pages.interval(run.measured[claim.id]) for claim in run.claims] == ["one seed", "one seed", "exact"]


def test_data_of_other_content_stops_before_the_work(tiny, tmp_path, monkeypatch):
    pipeline, computed, _ = tiny
    monkeypatch.setitem(data.DATASETS, "digits", replace(data.DIGITS, sha256="0" * 64))
    with pytest.raises(data.ChecksumMismatch, match="expected sha256 0+, got"):
        reproduce(pipeline, tmp_path)
    assert not computed


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_distinct_and_some(tiny, tmp_path, seeds):
    with pytest.raises(ValueError, match="tamis.reproduce: seeds: expected at least one, none twice, got"):
        reproduce(tiny[0], tmp_path, seeds)


def test_a_claim_cannot_be_dropped_or_added(tiny, tmp_path):
    pipeline, _, _ = tiny
    for change in (lambda found: found.pop("tiny-below"), lambda found: found.update(other=exact(1))):

        def measure(settings, results, change=change):
            found = dict(pipeline.measure(settings, results))
            change(found)
            return found

        with pytest.raises(AssertionError, match="tiny: claims not measured or not known: "):
            reproduce(replace(pipeline, measure=measure), tmp_path)


def test_missing_data_stops_before_the_work(tiny, tmp_path, monkeypatch):
    pipeline, computed, _ = tiny
    gone = Dataset("gone", "x", "x", "x", "pip install gone", lambda: [], lambda files: None, "0" * 64)
    monkeypatch.setitem(data.DATASETS, "gone", gone)
    with pytest.raises(MissingData, match="tamis.data: gone is not installed: pip install gone"):
        reproduce(replace(pipeline, datasets=lambda settings: ("gone",)), tmp_path)
    assert not computed


@pytest.mark.parametrize(
    ("name", "words"),
    [("nothing", r"expected one of iwes, .*, got nothing"), ("kaft", "got kaft, which is not built yet")],
)
def test_a_paper_must_be_known_and_built(name, words):
    with pytest.raises(ValueError, match=f"tamis.reproduce: NAME: {words}|tamis.reproduce: NAME: .* {words}"):
        runner.find(name)


def test_what_a_run_leaves_behind(tiny, tmp_path):
    pipeline, _, _ = tiny
    run = reproduce(pipeline, tmp_path)
    files = pages.save(run, tmp_path)
    assert [file.name for file in files] == ["tiny.json", "tiny.csv", "tiny-line.png", "tiny.md"]
    result = json.loads(files[0].read_text())
    assert result["paper"] == "tiny" and result["mode"] == "quick" and result["seeds"] == [0, 1]
    first = result["claims"][0]
    keys = ["id", "statement", "quantity", "relation", "threshold", "measured", "interval", "seeds", "n", "holds"]
    assert list(first)[:10] == keys and first["measured"] == 3 and first["seeds"] == 2
    assert [c["holds"] for c in result["claims"]] == [False, False, True]  # two seeds: 3 +- 12.7
    assert result["claims"][2]["threshold"] == [0, 10]
    rows = list(csv.DictReader(files[1].open()))
    assert [row["claim"] for row in rows] == [c["id"] for c in result["claims"]]
    assert rows[0]["values"] == "2.0 4.0" and rows[2]["threshold"] == "0 10" and rows[2]["holds"] == "True"
    assert files[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = files[3].read_text()
    assert "1 of 3 claims hold here" in page and "A table." in page and "![line](tiny-line.png)" in page
    assert "| `tiny-above` | a \\| b | 3.000 | -9.706 to 15.706 | > 0 | no | holds |" in page
    assert "| `tiny-above` | extra | 1.500 |" in page


app = typer.Typer()
app.command()(command.reproduce)
app.add_typer(data_command, name="data")


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_the_command(tiny, tmp_path, monkeypatch):
    here = runner._computed  # a worker would not know the tiny paper
    monkeypatch.setattr(runner, "_computed", lambda p, s, jobs, workers: here(p, s, jobs, 0))
    arguments = ["reproduce", "tiny", "--out", str(tmp_path / "new" / "out"), "--json", str(tmp_path / "copy.json")]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "tiny-above" in result.output and "3/3" in result.output
    copy = json.loads((tmp_path / "copy.json").read_text())
    assert copy["mode"] == "quick" and copy["seeds"] == [0, 1]
    assert copy["claims"] == json.loads((tmp_path / "new" / "out" / "tiny.json").read_text())["claims"]
    result = invoke(*arguments, "--full", "--seed", "4", "--seeds", "6")
    copy = json.loads((tmp_path / "copy.json").read_text())
    assert copy["mode"] == "full" and copy["seeds"] == [4, 5, 6, 7, 8, 9] and copy["settings"] == {"factor": 3}


@pytest.mark.parametrize(
    ("error", "words"), [(KeyboardInterrupt, "interrupted;"), (BrokenProcessPool, "a worker was killed, or crashed;")]
)
def test_a_broken_run_says_how_to_go_on(tiny, tmp_path, monkeypatch, error, words):
    def broken(*arguments):
        raise error
        yield

    monkeypatch.setattr(runner, "_computed", broken)
    result = invoke("reproduce", "tiny", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert words in result.output
    assert f"what is done lies in {tmp_path}: the same command goes on from there" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "NAME: expected one of iwes"),
        (["mixup-linearity"], "mixup-linearity, which is not built yet"),
        ([], "NAME: expected one of iwes"),
        (["iwes", "--quick", "--full"], "--quick, --full: expected one of them, got both"),
        (["iwes", "--seeds", "-1"], "'--seeds': "),
        (["iwes", "--full", "--seeds", "4"], "--seeds: expected 5 or more with --full, got 4"),
        (["iwes", "--jobs", "0"], "'--jobs': "),
        (["iwes", "--json", "/no/such/file"], "'--json': expected a file that can be written, got /no/such/file"),
        (["iwes", "--out", "/dev/null/x"], "'--out': expected a folder that can be written, got /dev/null/x"),
    ],
)
def test_bad_options_are_named(arguments, words):
    result = invoke("reproduce", *arguments)
    assert result.exit_code == 2
    assert words in result.output.replace("\n", " ")


def test_papers_and_data_are_listed():
    result = invoke("reproduce", "--list")
    assert result.exit_code == 0
    assert all(name in result.output for name in papers())
    listed = invoke("data", "list")
    assert listed.exit_code == 0 and all(name in listed.output for name in data.DATASETS)
    got = invoke("data", "get", "digits")
    assert got.exit_code == 0 and got.output.strip().endswith("digits.csv.gz")
    bad = invoke("data", "get", "nothing")
    assert bad.exit_code == 2 and "NAME: expected one of python-docs" in bad.output


def test_data_that_is_missing_says_what_to_install(monkeypatch, tmp_path):
    gone = replace(data.DIGITS, find=lambda: [])
    monkeypatch.setitem(data.DATASETS, "digits", gone)
    for arguments in (["data", "get", "digits"], ["reproduce", "iwes", "--out", str(tmp_path)]):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert "tamis.data: digits is not installed: pip install 'tamis[pipelines]'" in result.output
