"""The pipeline, tiny: all of it runs, and its numbers are those of a few plain lines. No finding is asserted."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tamis.pipelines import pages, runner
from tamis.pipelines.claims import claims
from tamis.pipelines.scod import PIPELINE, Settings
from tamis.pipelines.scod_exact import all_rejectors, draw, gaussians, known, largest_excess, prefixes
from tamis.pipelines.scod_images import Images, LossBased, Plain, Split, fitted_temperature, networks, split
from tamis.sampling.selective_network import TwoHeads, outputs

pytest.importorskip("mnist1d")
pytest.importorskip("sklearn")

TINY = Settings(
    problems=20,
    points=300,
    images=Images(
        train=240, strict=60, validation=60, wild=160, calibration=300, test=300, noise=0.2, channels=4, steps=60
    ),
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> runner.Reproduction:
    return reproduce(tmp_path_factory.mktemp("scod"))


def reproduce(out: Path, report: runner.Report = lambda done, total, name: None) -> runner.Reproduction:
    return runner.reproduce(PIPELINE, TINY, "quick", (0, 1), out, workers=0, report=report)


def result(run: runner.Reproduction) -> dict[str, object]:
    """But for when and how long."""
    return {name: value for name, value in run.to_json().items() if name not in ("seconds", "kept", "machine")}


def test_workers_give_the_same_and_end_with_a_run_that_is_killed(run: runner.Reproduction, tmp_path: Path) -> None:
    """While its parts are computed. On Linux; elsewhere nobody tells who a process's children are."""
    program = """
import sys
from functools import partial
from pathlib import Path
from tamis.pipelines import runner
from pipelines.test_scod import PIPELINE, TINY
if __name__ == "__main__":
    show = partial(print, flush=True)  # as it happens
    runner.reproduce(PIPELINE, TINY, "quick", (0, 1), Path(sys.argv[1]), workers=2, report=show)
"""
    (tmp_path / "program.py").write_text(program)
    tests = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path / "out"],
        env=os.environ | tests,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    with child.stdout as lines:
        for line in lines:
            if int(line.split()[0]) > 0:
                break
        workers = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        pids = workers.read_text().split() if workers.exists() else []  # before the run ends
        child.kill()
        child.wait()
    assert len(pids) >= 2 or not Path(f"/proc/self/task/{os.getpid()}/children").exists()
    give_up = time.monotonic() + 60
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    kept = [*(tmp_path / "out").rglob("*.json")]
    assert kept
    assert result(reproduce(tmp_path / "out")) == result(run)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_every_claim_is_measured(run: runner.Reproduction) -> None:
    found = {claim["id"]: claim for claim in run.to_json()["claims"]}
    assert list(found) == [claim.id for claim in claims("scod")] and len(found) == 12
    for claim in found.values():
        assert math.isfinite(claim["measured"]) and all(map(math.isfinite, claim["interval"]))
    for name in ("scod-msp-optimal-reject", "scod-bayes-rule", "scod-unifies-special-cases"):
        assert found[name]["holds"] and found[name]["interval"] == [found[name]["measured"]] * 2
    assert all(len(claim["values"]) in (0, 2) for claim in found.values())
    assert {"at c_fn 0.25", "at c_fn 0.75"} == set(found["scod-lb-beats-ood-only"]["beside"])


def test_claims_are_their_quantities(run: runner.Reproduction) -> None:
    measured, records = run.measured, list(run.results["images"].values())
    main = [record["auc"]["matched"]["0.75"] for record in records]
    unseen = [record["auc"]["unseen"]["0.75"] for record in records]
    half = [record["auc"]["matched"]["0.5"] for record in records]
    detection = [record["auroc"]["matched"] for record in records]
    rivals = ("MSP", "max logit", "energy", "DOCTOR", "SIRC, L1", "SIRC, residual", "rho alone")
    detectors = ("MSP", "max logit", "energy", "SIRC, L1", "SIRC, residual")
    want = {
        "scod-budget-met": [max(abs(v - float(k)) for k, v in record["rejected"].items()) for record in records],
        "scod-lb-beats-msp": [a["LB"] - a["MSP of the LB network"] for a in main],
        "scod-lb-beats-ood-only": [a["LB"] - a["rho alone"] for a in half],
        "scod-lb-competitive": [a["LB"] - min(a[name] for name in rivals) for a in main],
        "scod-black-box-beats-msp": [a["black box, L1"] - a["MSP"] for a in main],
        "scod-lb-unseen-ood": [a["LB"] - a["MSP"] for a in unseen],
        "scod-classification-kept": [100 * (r["accuracy"]["LB"] - r["accuracy"]["MSP"]) for r in records],
        "scod-ood-detection": [a["rho alone"] - max(a[name] for name in detectors) for a in detection],
        "scod-msp-suboptimal-ood": [r["ratio"] - r["msp"] for r in run.results["gaussians"].values()],
    }
    for name, values in want.items():
        assert list(measured[name].values) == pytest.approx(values, rel=1e-12)
        assert measured[name].value == pytest.approx(np.mean(values), rel=1e-12)
        low, high = measured[name].interval
        assert (high - low) / 2 == pytest.approx(12.7062 * np.std(values, ddof=1) / 2**0.5, rel=1e-4)  # t of 1 degree
    assert set(records[0]["rejected"]) == {"0.1", "0.2", "0.3", "0.4", "0.5"}


def test_interrupted_and_resumed_it_is_the_same(run: runner.Reproduction, tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(tmp_path, stop)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert len(kept) == 4
    again = reproduce(tmp_path)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    assert json.dumps(result(again)) == json.dumps(result(run))


def test_page_and_plots(run: runner.Reproduction, tmp_path: Path) -> None:
    files = {file.name: file for file in pages.save(run, tmp_path)}
    for plot in ("risk-coverage", "scores", "auc-rc"):
        assert files[f"scod-{plot}.png"].read_bytes().startswith(b"\x89PNG")
    page = files["scod.md"].read_text()
    for words in ("| SIRC, residual |", "AUC-RC, unseen outliers", "| as drawn | published |", "Fitted temperature"):
        assert words in page
    assert json.loads(files["scod.json"].read_text())["arxiv"] == "2301.12386"


@pytest.fixture(scope="module")
def data() -> Split:
    return split(TINY.images, 3)


@pytest.fixture(scope="module")
def both(data: Split) -> tuple[TwoHeads, TwoHeads]:
    return networks(TINY.images, data, 3)


def test_split_is_disjoint_and_even(data: Split) -> None:
    apart = [pool.x.reshape(len(pool.x), -1) for pool in data[:-1]]
    together = np.concatenate(apart)
    assert len(np.unique(together, axis=0)) == len(together) == 240 + 60 + 60 + 160 + 300 + 300
    for pool in (data.train, data.strict, data.validation):
        assert set(pool.y.tolist()) == {0, 1, 2, 3, 4, 5}
    for pool in (data.wild, data.calibration, data.matched, data.unseen):
        assert pool.outlier.mean() == 0.5 and pool.outlier[: len(pool.y) // 2].any() and not pool.outlier[:20].all()
    seen, other = (set(map(bytes, pool.x[pool.outlier])) for pool in (data.matched, data.unseen))
    assert not seen & other
    same, again = (set(map(bytes, pool.x[~pool.outlier])) for pool in (data.matched, data.unseen))
    assert same == again
    assert all(np.array_equal(a.x, b.x) for a, b in zip(data, split(TINY.images, 3), strict=True))
    assert not np.array_equal(data.train.x, split(TINY.images, 4).train.x)
    assert split(replace(TINY.images, noise=0.0), 3).train.x.std() == pytest.approx(1.0, abs=0.1)


def test_baselines_are_their_formulas(data: Split, both: tuple[TwoHeads, TwoHeads]) -> None:
    plain = Plain(both[1], data)
    got, pool = plain.rejects(data.matched, 0.75), data.matched
    with torch.no_grad():
        features, logits, _ = both[1](torch.tensor(pool.x))
        trained, _, _ = both[1](torch.tensor(data.train.x))
        inlier, _, none = both[1](torch.tensor(data.validation.x))
    assert none is None
    features, logits, trained, inlier = (t.double().numpy() for t in (features, logits, trained, inlier))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def same(method: str, score: object) -> None:
        np.testing.assert_allclose(got[method].score, score, rtol=1e-6, atol=1e-9)

    same("MSP", 1 - p.max(1))
    same("entropy", -(p * np.log(p)).sum(1))
    same("max logit", -logits.max(1))
    same("energy", -np.log(np.exp(logits).sum(1)))
    same("DOCTOR", (1 - (p**2).sum(1)) / (p**2).sum(1))
    hot = np.exp(logits / plain.temperature)
    same("MSP, temperature", 1 - hot.max(1) / hot.sum(1))
    norm, train_norm = np.abs(features).sum(1), np.abs(trained).sum(1)
    a, b = train_norm.mean() - 3 * train_norm.std(), 1 / train_norm.std()
    same("SIRC, L1", (1 - p.max(1)) * (1 + np.exp(-b * (norm - a))))
    ratio = (1 / norm) / (1 / np.abs(inlier).sum(1)).mean()
    same("black box, L1", (0.25 * (1 - p.max(1)) + 0.75 * ratio) / (0.5 + 0.5 * ratio))
    weight, bias = (parameter.detach().double().numpy() for parameter in both[1].classes.parameters())
    origin = -np.linalg.pinv(weight) @ bias
    np.testing.assert_allclose(weight @ origin + bias, 0, atol=1e-6)
    principal = np.linalg.svd(trained - origin)[2][: trained.shape[1] // 2]
    outside = [(x - origin) - (x - origin) @ principal.T @ principal for x in (features, trained)]
    residual, train_residual = (-np.linalg.norm(x, axis=1) for x in outside)
    a, b = train_residual.mean() - 3 * train_residual.std(), 1 / train_residual.std()
    same("SIRC, residual", (1 - p.max(1)) * (1 + np.exp(-b * (residual - a))))
    np.testing.assert_array_equal(got["MSP"].wrong, logits.argmax(1) != pool.y)


def test_loss_based_scores_are_their_formulas(data: Split, both: tuple[TwoHeads, TwoHeads]) -> None:
    got, pool = LossBased(both[0], data).rejects(data.unseen, 0.25), data.unseen
    with torch.no_grad():
        _, logits, s = both[0](torch.tensor(pool.x))
        strict = both[0](torch.tensor(data.strict.x))[2].double().numpy()
    share = min(np.exp(-strict).mean(), 0.95)
    ratio = np.maximum((np.exp(-s.double().numpy()) - share) / (1 - share), 1e-6)
    error = 1 - logits.double().softmax(1).max(1).values.numpy()
    np.testing.assert_allclose(got["rho alone"].score, ratio, rtol=1e-4, atol=1e-6)
    want = (0.75 * error + 0.25 * ratio) / (0.5 + 0.5 * ratio)
    np.testing.assert_allclose(got["LB"].score, want, rtol=1e-4, atol=1e-6)
    order = got["rho alone"].order()
    assert (np.diff(got["rho alone"].score[order]) >= 0).all() and (np.diff(got["rho alone"].tie[order]) >= 0).all()


def test_temperature_is_the_best_of_many() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((500, 6))
    y = np.array([rng.choice(6, p=row / row.sum()) for row in np.exp(logits)])
    losses = {}
    for t in np.geomspace(0.2, 5, 400):
        z = 3 * logits / t
        losses[float(t)] = float((np.log(np.exp(z).sum(1)) - z[np.arange(500), y]).mean())
    assert fitted_temperature(3 * logits, y) == pytest.approx(min(losses, key=losses.__getitem__), rel=0.01)


def test_known_densities() -> None:
    x = np.random.default_rng(1).normal(size=(50, 2)) * 3
    centres = [(2, 0), (-1, 3**0.5), (-1, -(3**0.5))]
    density = [np.exp(-((x - np.array(c)) ** 2).sum(1) / 2) for c in (*centres, (5, 0))]
    total = sum(density[:3])
    error, log_ratio = known(x)
    np.testing.assert_allclose(error, 1 - np.max(density[:3], axis=0) / total, atol=1e-12)
    np.testing.assert_allclose(log_ratio, np.log(density[3] / (total / 3)), rtol=1e-9, atol=1e-9)
    got = gaussians(2000, 0)
    assert got["ratio"] > 0.98 and got["msp"] < 0.05


def test_brute_force_goes_over_everything_and_sees_a_bad_rule() -> None:
    assert {tuple(row) for row in all_rejectors(4)} == set(product([False, True], repeat=4))
    assert len(all_rejectors()) == 128
    rng = np.random.default_rng(0)
    problems = [draw(rng) for _ in range(20)]
    assert max(largest_excess(problem, prefixes(problem.score(), problem.error)) for problem in problems) < 1e-12
    assert max(largest_excess(problem, prefixes(problem.error, problem.error)) for problem in problems) > 0.01
    assert prefixes(np.array([0.0, 2.0, 1.0]), np.zeros(3)).tolist() == [
        [False, False, False],
        [False, True, False],
        [False, True, True],
        [True, True, True],
    ]


def test_areas_by_pair_counting(run: runner.Reproduction) -> None:
    """The record of a seed, from its networks by plain loops."""
    record, pool = run.results["images"][1], split(TINY.images, 1).matched
    _, without = networks(TINY.images, split(TINY.images, 1), 1)
    logits = outputs(without, pool.x).logits
    error = 1 - torch.tensor(logits).softmax(1).max(1).values.numpy()
    inside, outside = error[~pool.outlier], error[pool.outlier]
    pairs = (outside[:, None] > inside).mean() + (outside[:, None] == inside).mean() / 2
    assert record["auroc"]["matched"]["MSP"] == pytest.approx(pairs, rel=1e-6)
    total, area = 0.0, 0.0
    for k, i in enumerate(sorted(range(len(error)), key=lambda i: error[i]), 1):
        total += 0.75 if pool.outlier[i] else 0.25 * (logits[i].argmax() != pool.y[i])
        area += total / k
    assert record["auc"]["matched"]["0.75"]["MSP"] == pytest.approx(area / len(error), rel=1e-6)
    right = (logits.argmax(1) == pool.y)[~pool.outlier].mean()
    assert record["accuracy"]["MSP"] == pytest.approx(right)
