"""The Lazy Neuron pipeline, tiny: all of it runs, and its numbers are those of plain lines. No finding is asserted."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from tamis.pipelines import data, lazy_neuron_speed, pages, runner
from tamis.pipelines.claims import claims
from tamis.pipelines.lazy_neuron import FULL, PIPELINE, Settings
from tamis.pipelines.lazy_neuron_images import Images, TopK
from tamis.pipelines.lazy_neuron_latency import Latency
from tamis.pipelines.lazy_neuron_speed import Speed
from tamis.pipelines.lazy_neuron_text import Text

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

SETS = {"digits": (200, 80), "mnist-5k": (200, 80)}
TINY = Settings(
    text=Text(
        d=16,
        context=16,
        batch=4,
        steps=12,
        width=24,
        widths=(16, 48),
        deep=3,
        k=4,
        sizes=(2000,),
        held=3,
        glance=1,
        other_steps=6,
    ),
    images=Images(
        sets={"mnist-5k": (200, 80)},
        beside={"digits": (200, 80)},
        d=16,
        width=24,
        steps=4,
        two_layer_steps=12,
        random_widths=(24, 32),
        random_transformer=True,
        other_rates=(1e-3,),
        counted=60,
        glance=30,
    ),
    topk=TopK(sets=SETS, width=24, ks=(6, 2), steps=6, transformer_noises=(0.0, 0.4), transformer_steps=3),
    speed=Speed(
        d=16,
        d_ff=64,
        context=16,
        batch=2,
        steps=4,
        ks=(16, 4),
        trained_k=4,
        narrow=32,
        held=2,
        tokens=8,
        repeats=2,
        train_repeats=2,
    ),
    latency=Latency(d=32, units=64, layers=2, repeats=3),
    units=64,
    draws=60,
    starts=3,
)


@pytest.fixture(scope="module", autouse=True)
def small_images():
    """Digits in the place of MNIST, which takes a second to read each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "mnist-5k", replace(data.DIGITS, name="mnist-5k"))
        yield


@pytest.fixture(scope="module")
def run(small_images, tmp_path_factory: pytest.TempPathFactory) -> runner.Reproduction:
    return reproduce(tmp_path_factory.mktemp("lazy"))


def reproduce(
    out: Path, report: runner.Report = lambda done, total, name: None, seeds: tuple[int, ...] = (0, 1)
) -> runner.Reproduction:
    return runner.reproduce(PIPELINE, TINY, "quick", seeds, out, workers=0, report=report)


def test_every_claim_is_measured(run: runner.Reproduction) -> None:
    found = {claim["id"]: claim for claim in run.to_json()["claims"]}
    assert list(found) == [claim.id for claim in claims("lazy-neuron")] and len(found) == 22
    json.dumps(run.to_json(), allow_nan=False)
    for claim in found.values():
        assert math.isfinite(claim["measured"])
        assert len(claim["values"]) == (0 if claim["id"] == "lazy-initial-drift" else 2)
    # Nothing emerges in 12 steps: equality on training and held-out data is then not claimed.
    assert found["lazy-train-equals-eval"]["interval"] == [None, None]
    assert not found["lazy-train-equals-eval"]["holds"]


def test_claims_are_their_quantities(run: runner.Reproduction) -> None:
    results, measured = run.results, run.measured

    def records(part: str) -> list[runner.Record]:
        return list(results[part].values())

    def ratios(part: str, probe: str = "held") -> list[float]:
        return [np.mean(r["end"][probe]) / np.mean(r["start"][probe]) for r in records(part)]

    def ends(part: str) -> "np.ndarray":
        return np.array([np.mean(r["end"]["held"]) for r in records(part)])

    def gain(part: str, value) -> list[float]:
        return [value(r["6"]) - value(r["dense"]) for r in records(part)]

    def highest(values: list[float]) -> float:
        return np.mean(values) + 12.7062 * np.std(values, ddof=1) / 2**0.5  # t of 1 degree

    def lowest(values: list[float]) -> float:
        return -highest([-value for value in values])

    def worst(noise: str, value, pick) -> list[float]:
        key = highest if pick is max else lowest
        return pick((gain(f"top-k-{name}-{noise}", value) for name in SETS), key=key)

    base = records("characters-2x24")
    layers = np.array(
        [[e / s for e, s in zip(r["end"]["held"], r["start"]["held"], strict=True)] for r in records("characters-3x24")]
    )
    want = {
        "lazy-sparsity-emerges": ratios("characters-2x24"),
        "lazy-very-few-nonzero": ends("characters-2x24"),
        "lazy-wider-sparser": ends("characters-2x48") - ends("characters-2x16"),
        "lazy-deeper-sparser": ends("characters-3x24") - ends("characters-2x24"),
        "lazy-language": max(map(ratios, ("fill-spans", "text-classes")), key=highest),
        "lazy-vision-transformer": ratios("vit-mnist-5k"),
        "lazy-mixer": ratios("mixer-mnist-5k"),
        "lazy-two-layer-mlp": ratios("mlp-mnist-5k"),
        "lazy-train-equals-eval": [np.mean(r["end"]["train"]) - np.mean(r["end"]["held"]) for r in base],
        "lazy-all-depths": layers[:, layers.mean(0).argmax()],
        "lazy-not-dead": [r["dead"] for r in base],
        "lazy-random-labels": ratios("random-labels-24", "train"),
        "lazy-random-inputs": ratios("random-inputs-24", "train"),
        "lazy-infinite-data": ratios("infinite-data-24", "train"),
        "lazy-flop-reduction": (1 + ends("characters-2x24") / 100) / 2,
        "lazy-faster-inference": [r["sparse"] / min(r["own"], r["torch"]) for r in records("latency")],
        "lazy-topk-quality": [a["loss"] - b["loss"] for a, b in zip(records("characters-top-k"), base, strict=True)],
        "lazy-topk-label-noise": worst("0.4", lambda r: r["accuracy"]["clean"], min),
        "lazy-topk-input-corruption": worst(
            "0", lambda r: (r["accuracy"]["Gaussian"] + r["accuracy"]["impulse"] + r["accuracy"]["shot"]) / 3, min
        ),
        "lazy-topk-calibration": worst("0", lambda r: r["ece"], max),
        "lazy-topk-calibration-label-noise": worst("0.4", lambda r: r["ece"], max),
    }
    assert want.keys() | {"lazy-initial-drift"} == measured.keys()
    for name, values in want.items():
        assert measured[name].values == pytest.approx(list(values), rel=1e-12, abs=1e-12), name
        assert measured[name].value == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12), name
    for name in measured.keys() - {"lazy-initial-drift", "lazy-train-equals-eval"}:
        low, high = measured[name].interval
        ends_of = [end(measured[name].values) for end in (lowest, highest)]
        assert [low, high] == pytest.approx(ends_of, rel=1e-4, abs=1e-9)
    drift, means = measured["lazy-initial-drift"], records("drift")[0]["cross-entropy, 10 classes"]["means"]
    assert drift.n == len(means) == TINY.draws and drift.value == pytest.approx(fmean(means))
    assert records("characters-2x24")[0]["tokens"] == TINY.text.held * TINY.text.batch * TINY.text.context
    assert "80% noise, digits" in measured["lazy-topk-label-noise"].beside
    assert "vision Transformer" in measured["lazy-topk-label-noise"].beside
    assert "k = 2, digits" in measured["lazy-topk-calibration"].beside


def test_the_settings_of_the_claims_are_those_of_both_modes() -> None:
    for settings in (PIPELINE.quick, FULL):
        text, topk = settings.text, settings.topk
        assert (text.d, text.context, text.width, text.layers, text.deep, text.k) == (64, 48, 256, 2, 4, 16)
        assert (text.steps, text.batch, text.learning_rate) == (800, 16, 3e-3) and {64, 1024} <= {*text.widths}
        assert text.held * text.batch * text.context >= 10_000
        assert settings.images.width == settings.images.random_widths[0] == topk.width == 256
        assert (settings.images.two_layer_steps, settings.images.fresh_learning_rate) == (2000, 1e-2)
        assert topk.ks[0] == 64 and topk.noises == (0.0, 0.4, 0.8) and len(topk.sets) == 2
        assert (settings.units, settings.draws) == (512, 2000)
        assert (settings.latency.d, settings.latency.units) == (1024, 4096)
    assert PIPELINE.full_seeds >= 5
    ours = {part.name for part in PIPELINE.parts(PIPELINE.quick)}
    assert ours - {part.name.replace("fashion-mnist", "mnist-5k") for part in PIPELINE.parts(FULL)} == set()


def test_interrupted_and_resumed_it_is_the_same(run: runner.Reproduction, tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(tmp_path, stop, (1,))
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert len(kept) == 9
    again = reproduce(tmp_path, seeds=(1,))
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    for part in PIPELINE.parts(TINY):
        if part.seeded and part.name not in ("latency", "speed"):
            assert again.results[part.name][1] == run.results[part.name][1], part.name


def test_page_and_plots(run: runner.Reproduction, tmp_path: Path) -> None:
    files = {file.name: file for file in pages.save(run, tmp_path)}
    for plot in ("training", "layers", "scaling", "neurons", "topk", "speed"):
        assert files[f"lazy-neuron-{plot}.png"].read_bytes().startswith(b"\x89PNG")
    page = files["lazy-neuron.md"].read_text()
    for words in ("| characters-3x24 |", "| vision Transformer | 40% | top-6 |", "| trained with 4 | top-4 (6.2%)"):
        assert words in page
    assert json.loads(files["lazy-neuron.json"].read_text())["arxiv"] == "2210.06313"


def test_missing_data_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(data.PYTHON_SOURCE, find=lambda: [])
    monkeypatch.setitem(data.DATASETS, "python-source", gone)
    with pytest.raises(data.MissingData, match="python-source is not installed: this Python comes without its sources"):
        reproduce(tmp_path)
    assert "fashion-mnist" in PIPELINE.datasets(FULL) and "fashion-mnist" not in PIPELINE.datasets(PIPELINE.quick)


def test_a_trajectory_starts_and_ends_with_the_run(run: runner.Reproduction) -> None:
    record = run.results["infinite-data-24"][0]
    assert [step for step, _ in record["trajectory"]] == [0, 1, 2, 5, 10, 12]
    assert sum(record["rates"]) == 24 and record["layers"] == ["mlp"]
    assert set(record["end"]) == {"train", "held"} and next(iter(record["end"])) == "train"
    for part in ("vit-mnist-5k", "mlp-mnist-5k"):
        assert next(iter(run.results[part][0]["end"])) == "held"
    assert run.results["fill-spans"][0]["layers"] == [f"{s}.{i}.mlp" for s in ("encoder", "decoder") for i in range(2)]


def test_what_speed_says(run: runner.Reproduction) -> None:
    (record,) = run.results["speed"].values()
    dense, topped = (record["decode"][name] for name in ("trained dense", "trained with 4"))
    assert list(dense) == ["dense", "16", "4"] and list(topped) == ["dense", "4"]
    assert list(record["narrow"]) == ["dense", "2"]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in dense.values())
    assert all(share <= 100 * 4 / 64 for share in dense["4"]["nonzero"].values())
    assert {name: len(times) for name, times in record["step_seconds"].items()} == {"dense": 2, "16": 2, "4": 2}
    assert 0 < dense["4"]["fires"] <= 100 * 4 / 64 < dense["dense"]["fires"]
    share = dense["4"]["fires"] / 100
    assert record["flops"]["4"]["mlp"] == pytest.approx(2 * 2 * 16 * 64 * (1 + share))
    assert record["flops"]["dense"] == {"attention": 2 * (8 * 16**2 + 4 * 4.5 * 16), "mlp": 2 * 4 * 16 * 64}


def test_a_model_of_ones_own_is_compared_and_dense_again() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    x = torch.randn(10, 8)
    want, kinds = model(x), [type(module) for module in model]

    def tokens() -> int:
        model(x)
        return len(x)

    rows = lazy_neuron_speed.compare(model, (32, 4), tokens, lambda: {"first": model(x)[0, 0].item()}, repeats=3)
    assert list(rows) == ["dense", "32", "4"] and all(len(row["seconds"]) == 3 for row in rows.values())
    assert rows["dense"]["first"] == want[0, 0].item() == pytest.approx(rows["32"]["first"], abs=1e-6)
    assert rows["dense"]["nonzero"] == rows["32"]["nonzero"] and rows["4"]["nonzero"][""] <= 12.5
    assert [type(module) for module in model] == kinds and torch.equal(model(x), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model: expected a torch.nn.Module, got int"),
        ({"ks": (2, 2)}, ValueError, r"ks: expected none twice, got \[2, 2\]"),
        ({"ks": (2, 99)}, ValueError, "99"),
        ({"repeats": 0}, ValueError, "repeats: expected 1 or more, got 0"),
        ({"run": lambda model: model(torch.ones(1, 8)).sum()}, TypeError, "run: expected"),
        ({"run": lambda model: model(torch.ones(1, 8)) is None}, TypeError, "run: expected"),
        ({"run": lambda model: [model(torch.ones(1, 8)), 0][1]}, ValueError, "run: expected how many .*, got 0"),
        ({"run": lambda model: 7}, ValueError, "run: expected a call of the model, got none of its MLPs was called"),
        ({"score": lambda: {"seconds": 1.0}}, ValueError, r"score: expected names of its own, got \['seconds'\]"),
    ],
)
def test_what_cannot_be_compared(change, error, message) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    given = {"model": model, "ks": (4,), "run": lambda model: len(model(torch.ones(5, 8)))} | change
    run, score, repeats = (
        given.get(name, default) for name, default in (("run", None), ("score", dict), ("repeats", 2))
    )
    with pytest.raises(error, match=message):
        lazy_neuron_speed.compare(given["model"], given["ks"], lambda: run(model), score, repeats=repeats)
    assert [type(module).__name__ for module in model] == ["Linear", "ReLU", "Linear"]


def test_a_model_without_known_mlps_is_refused_and_what_it_has_is_listed() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

    with pytest.raises(ValueError, match=r"expected MLPs \(T5DenseActDense, .*none in Own\n.*Own: its class is not in"):
        lazy_neuron_speed.compare(Own(), (2,), lambda: 1)
    with pytest.raises(ValueError, match="none in Linear$"):
        lazy_neuron_speed.compare(torch.nn.Linear(3, 3), (2,), lambda: 1)
    with pytest.raises(ValueError, match="tamis.compare: repeats: expected 1 or more, got 0"):
        lazy_neuron_speed.compare(Own(), (2,), lambda: 1, repeats=0)
