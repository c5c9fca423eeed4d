"""IWeS (2301.12052): does choosing, and weighing, what to train on beat choosing uniformly?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..sampling import IWeS, Trainer, softmax_stats
from . import iwes_theory as theory
from .claims import Measured, exact, normal, over_seeds, share, student
from .data import DATASETS
from .pages import table
from .runner import Part, Pipeline, Record, Results, differences

BASELINES = ("uniform", "top_entropy", "margin", "coreset", "badge")
PLAIN = (*BASELINES, "least_confidence", "entropy", "unweighted", "disagreement")
OURS = {"entropy": "IWeS-ent", "disagreement": "IWeS-dis"}
OTHER = (*BASELINES, "entropy", "disagreement")


@dataclass(frozen=True)
class PoolOf:
    """How a data set is used: test and pool sizes, the start set, the picks a round."""

    test: int
    pool: int
    start: int
    picks: int


@dataclass(frozen=True)
class Settings:
    """redundant: how many copies the redundant pool has, and of what noise; noise: share of its labels that are drawn
    anew; width: hidden units of the MLP."""

    pools: dict[str, PoolOf] = field(
        default_factory=lambda: {
            "digits": PoolOf(500, 1297, 40, 30),
            "mnist-1d": PoolOf(1000, 4000, 100, 100),
            "mnist-5k": PoolOf(1000, 4000, 50, 50),
            "breast-cancer": PoolOf(169, 400, 20, 10),
            "wine": PoolOf(58, 120, 10, 5),
        }
    )
    rounds: int = 8
    cap: float = 2.0
    width: int = 64
    steps: int = 300
    copies: int = 4000
    copy_noise: float = 0.05
    copy_picks: int = 100
    label_noise: float = 0.2
    races: int = 200_000
    coins: int = 20_000
    runs: int = 200
    run_steps: int = 5000


FASHION = {"fashion-mnist": PoolOf(10_000, 10_000, 100, 100)}


def split(settings: Settings, name: str, seed: int) -> tuple[TensorDataset, TensorDataset, int]:
    """Pool, test set, classes. Measures of a table are standardised by the pool's own mean and deviation."""
    sizes = settings.pools[name]
    data = DATASETS[name].load()
    order = np.random.default_rng((seed, 0)).permutation(len(data.y))
    test, pool = order[: sizes.test], order[sizes.test : sizes.test + sizes.pool]
    x = data.x
    if x.ndim == 2:
        mean, deviation = x[pool].mean(0), x[pool].std(0)
        x = (x - mean) / np.maximum(deviation, 1e-6)
    parts = (TensorDataset(torch.from_numpy(x[at]), torch.from_numpy(data.y[at])) for at in (pool, test))
    return next(parts), next(parts), int(data.y.max()) + 1


def redundant(settings: Settings, pool: TensorDataset, classes: int, noise: float, seed: int) -> TensorDataset:
    """Near-copies of the pool's examples, the i-th most frequent 1/i as often as the first; `noise` of the labels are
    drawn anew from all classes."""
    x, y = pool.tensors
    generator = np.random.default_rng((seed, 1))
    often = 1 / np.arange(1, len(y) + 1)
    rank = generator.permutation(len(y))
    at = torch.from_numpy(rank[generator.choice(len(y), settings.copies, p=often / often.sum())])
    blur = generator.standard_normal((settings.copies, *x.shape[1:])).astype(np.float32) * settings.copy_noise
    anew = torch.from_numpy(generator.random(settings.copies) < noise)
    drawn = torch.from_numpy(generator.integers(classes, size=settings.copies))
    return TensorDataset(x[at] + torch.from_numpy(blur), torch.where(anew, drawn, y[at]))


def mlp(shape: Sequence[int], width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), width), nn.ReLU(), nn.Linear(width, classes))


def linear(shape: Sequence[int], width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))


class Cnn(nn.Module):
    """Two convolutions, for images [b, height, width]."""

    def __init__(self, shape: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.last = nn.Linear(32 * (shape[0] // 4) * (shape[1] // 4), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x[:, None])), 2)
        out: Tensor = self.last(F.max_pool2d(F.relu(self.second(x)), 2).flatten(1))
        return out


Family = Callable[[Sequence[int], int, int], nn.Module]
FAMILIES: dict[str, Family] = {"mlp": mlp, "linear": linear, "cnn": Cnn}


def accuracies(
    settings: Settings,
    sizes: PoolOf,
    pool: TensorDataset,
    test: TensorDataset,
    classes: int,
    seed: int,
    methods: Sequence[str],
    family: str = "mlp",
) -> Record:
    """By method: clean test accuracy in percent, after the start set and after each round, and the effective size of
    the last selection, (sum w)^2 / sum w^2. missing: how many classes the start set lacks."""
    shape = test.tensors[0].shape[1:]
    record: Record = {"accuracy": {}, "effective": {}, "missing": 0}
    for method in methods:
        curve: list[float] = []
        loop = IWeS(
            lambda: FAMILIES[family](shape, settings.width, classes),
            pool,
            start=sizes.start,
            picks=sizes.picks,
            rounds=settings.rounds,
            method="entropy" if method == "unweighted" else method,
            cap=1.0 if method == "unweighted" else settings.cap,
            seed=seed,
            train=Trainer(steps=settings.steps),
        )
        loop.run(progress=False, each=partial(_keep_accuracy, curve, test))
        record["accuracy"][method] = curve
        record["effective"][method] = loop.history[-1]["effective"]
        record["missing"] = classes - len(pool.tensors[1][loop.selection.indices[: sizes.start]].unique())
    return record


def _keep_accuracy(curve: list[float], test: TensorDataset, loop: IWeS, done: int, model: nn.Module) -> None:
    x, y = test.tensors
    model.eval()
    with torch.no_grad():
        curve.append(float((model(x).argmax(-1) == y).float().mean() * 100))


def _plain(name: str, methods: Sequence[str], family: str = "mlp") -> Callable[[Settings, int], Record]:
    def run(settings: Settings, seed: int) -> Record:
        pool, test, classes = split(settings, name, seed)
        return accuracies(settings, settings.pools[name], pool, test, classes, seed, methods, family)

    return run


def _redundant(noisy: bool, methods: Sequence[str]) -> Callable[[Settings, int], Record]:
    def run(settings: Settings, seed: int) -> Record:
        pool, test, classes = split(settings, "digits", seed)
        pool = redundant(settings, pool, classes, settings.label_noise if noisy else 0.0, seed)
        sizes = PoolOf(len(test), len(pool), settings.pools["digits"].start, settings.copy_picks)
        return accuracies(settings, sizes, pool, test, classes, seed, methods)

    return run


def _race(settings: Settings, seed: int) -> Record:
    return theory.race(settings.races, seed)


def _coins(settings: Settings, seed: int) -> Record:
    """The losses of one trained model on the pool."""
    pool, _, classes = split(settings, "digits", seed)
    loop = IWeS(
        lambda: mlp(pool.tensors[0].shape[1:], settings.width, classes),
        pool,
        start=100,
        picks=1,
        rounds=0,
        seed=seed,
        train=Trainer(steps=settings.steps),
    )
    loop.run(progress=False)
    assert loop.model is not None
    x, y = pool.tensors
    with torch.no_grad():
        stats = softmax_stats(loop.model(x), target=y)
    assert stats.nll is not None
    return theory.coins(stats.nll, stats.normalized_entropy.clamp(min=0.05), settings.coins, seed)


def _iwes_v(settings: Settings, seed: int) -> Record:
    return theory.iwes_v(settings.runs, settings.run_steps, seed)


def parts(settings: Settings) -> list[Part]:
    others = [name for name in settings.pools if name != "digits"]
    return [
        Part("iwes-v", _iwes_v, seeded=False),
        Part("digits", _plain("digits", PLAIN)),
        Part("redundant", _redundant(False, ("uniform", "top_entropy", "entropy"))),
        Part("noisy", _redundant(True, ("uniform", "top_entropy", "entropy", "disagreement"))),
        Part("linear", _plain("digits", ("uniform", "entropy"), "linear")),
        Part("cnn", _plain("digits", ("uniform", "entropy"), "cnn")),
        *(Part(name, _plain(name, OTHER)) for name in others),
        Part("race", _race, seeded=False),
        Part("coins", _coins, seeded=False),
    ]


def auc(results: Results, part: str, method: str) -> list[float]:
    """By seed: the mean accuracy over the rounds."""
    return [fmean(record["accuracy"][method][1:]) for record in results[part].values()]


def gain(results: Results, part: str, method: str, over: str) -> list[float]:
    return differences(auc(results, part, method), auc(results, part, over))


def best(results: Results, part: str, methods: Sequence[str]) -> str:
    """By the mean over seeds, in hindsight."""
    return max(methods, key=lambda method: fmean(auc(results, part, method)))


def equal_compute(results: Results) -> float:
    """IWeS-dis less uniform at equal numbers of trained models: dis trains two a round."""
    gains = []
    for record in results["digits"].values():
        dis, uniform = record["accuracy"]["disagreement"], record["accuracy"]["uniform"]
        gains += [dis[k] - uniform[2 * k] for k in range(1, len(dis) // 2 + 1) if 2 * k < len(uniform)]
    return fmean(gains)


def _dis_beats_uniform(results: Results) -> Measured:
    gains = gain(results, "digits", "disagreement", "uniform")
    whole = [g for g, record in zip(gains, results["digits"].values(), strict=True) if not record["missing"]]
    beside = {f"where the start set has every class, {len(whole)} seeds": fmean(whole)} if whole else {}
    return over_seeds(gains, **{"at equal compute": equal_compute(results)} | beside)


def _seven(settings: Settings, results: Results) -> Measured:
    won, beside = 0, {}
    for name in settings.pools:
        rival = best(results, name, BASELINES)
        gains = gain(results, name, "disagreement", rival)
        low, high = student(gains)
        won += low > 0
        beside[f"{name}, over {rival}"] = f"{fmean(gains):.2f} ({low:.2f} to {high:.2f})"
    return share(won, len(settings.pools), "wilson", seeds=len(results["digits"]), **beside)


def _families(results: Results) -> Measured:
    by_family = {
        "logistic regression": gain(results, "linear", "entropy", "uniform"),
        "MLP": gain(results, "digits", "entropy", "uniform"),
        "convolutional network": gain(results, "cnn", "entropy", "uniform"),
    }
    worst = min(by_family, key=lambda name: fmean(by_family[name]))
    return over_seeds(by_family[worst], **{name: fmean(values) for name, values in by_family.items()})


def measure(settings: Settings, results: Results) -> dict[str, Measured]:
    noisy = [gain(results, "noisy", method, "uniform") for method in ("entropy", "disagreement")]
    iwes = best(results, "digits", ("entropy", "disagreement"))
    rival = best(results, "digits", BASELINES)
    (race,), (coins,), (runs,) = (list(results[name].values()) for name in ("race", "coins", "iwes-v"))
    over = sum(excess > 2 * runs["slack"] for excess in runs["excess"])
    rates = [late / early for early, late in zip(runs["early"], runs["late"], strict=True)]
    slower = over_seeds(rates)
    return {
        "iwes-ent-beats-uniform": over_seeds(gain(results, "digits", "entropy", "uniform")),
        "iwes-dis-beats-uniform": _dis_beats_uniform(results),
        "iwes-beats-uniform-noisy-pool": over_seeds(
            [min(pair) for pair in zip(*noisy, strict=True)], entropy=fmean(noisy[0]), disagreement=fmean(noisy[1])
        ),
        "iwes-beats-top-entropy": over_seeds(
            gain(results, "redundant", "entropy", "top_entropy"),
            **{"plain pool": fmean(gain(results, "digits", "entropy", "top_entropy"))},
        ),
        "iwes-beats-margin": over_seeds(gain(results, "digits", iwes, "margin"), method=iwes),
        "iwes-beats-coreset": over_seeds(gain(results, "digits", "entropy", "coreset")),
        "iwes-beats-badge": over_seeds(gain(results, "digits", "entropy", "badge")),
        "iwes-seven-datasets": _seven(settings, results),
        "iwes-arbitrary-models": _families(results),
        "iwes-weights-help": over_seeds(gain(results, "digits", "entropy", "unweighted")),
        "iwes-active-competitive": over_seeds(gain(results, "digits", "entropy", rival), over=rival),
        "iwes-exact-race": exact(max(race.values()), settings.races, **race),
        "iwes-unbiased": normal(coins["bias"], coins["error"], coins["draws"]),
        "iwes-theory-generalization": share(over, settings.runs, "exact", **{"largest excess": max(runs["excess"])}),
        "iwes-theory-sampling-rate": Measured(slower.value, slower.interval, 1, settings.runs),
    }


def tables(settings: Settings, results: Results) -> str:
    """Area under the learning curve by setting and method."""
    names = [part.name for part in parts(settings) if part.seeded]

    def cell(part: str, method: str) -> str:
        if any(method not in record["accuracy"] for record in results[part].values()):
            return ""
        values = auc(results, part, method)
        return f"{fmean(values):.2f} ± {(student(values)[1] - fmean(values)):.2f}"

    rows = ((part, *(cell(part, method) for method in PLAIN)) for part in names)
    labels = ", ".join(
        f"{name} {sizes.start} + {settings.rounds} x {sizes.picks}" for name, sizes in settings.pools.items()
    )
    return (
        f"Mean test accuracy over {settings.rounds} rounds, percent, with its 95% interval over seeds. Labels: "
        f"{labels}; redundant and noisy pools {settings.copy_picks} a round.\n\n" + table(("pool", *PLAIN), rows)
    )


def _curves(axes: Any, results: Results) -> None:
    """Accuracy against labels."""
    records = list(results["digits"].values())
    for method in ("entropy", "disagreement", "badge", "margin", "top_entropy", "uniform"):
        curve = np.array([record["accuracy"][method] for record in records])
        ours, rounds = method in OURS, np.arange(curve.shape[1])
        name = OURS.get(method, method.replace("_", " "))
        (line,) = axes.plot(rounds, curve.mean(0), label=name, linewidth=2.4 if ours else 1.2, zorder=3 if ours else 2)
        if ours and len(curve) > 1:
            error = curve.std(0, ddof=1) / np.sqrt(len(curve))
            axes.fill_between(rounds, curve.mean(0) - error, curve.mean(0) + error, color=line.get_color(), alpha=0.15)
    axes.set_xlabel("round of picks")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("digits: what to label next (bands: one standard error)")
    axes.legend()


def _gains(axes: Any, results: Results) -> None:
    """Over uniform, with intervals."""
    rows: list[tuple[str, str, list[float]]] = []
    for part, records in results.items():
        first: Record = next(iter(records.values()))
        for method, name in OURS.items():
            if method in first.get("accuracy", {}):
                rows.append((part, name, gain(results, part, method, "uniform")))
    for at, (_, name, gains) in enumerate(rows):
        low, high = student(gains)
        axes.plot([low, high], [at, at], color="C0" if name == "IWeS-ent" else "C1", linewidth=2)
        axes.plot(fmean(gains), at, "o", color="C0" if name == "IWeS-ent" else "C1")
    axes.set_yticks(range(len(rows)), [f"{part}, {name}" for part, name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel("mean accuracy over the rounds less uniform's, points (95% interval)")


def _rate(axes: Any, results: Results) -> None:
    """How often IWeS-V asks."""
    (runs,) = results["iwes-v"].values()
    rate: npt.NDArray[np.float64] = np.array(runs["rate"])
    axes.plot((np.arange(len(rate)) + 0.5) / len(rate) * 100, rate)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("share of the stream seen, %")
    axes.set_ylabel("share of examples that IWeS-V samples")
    axes.set_title("thresholds on [0, 1], 10% of labels flipped")


PIPELINE = Pipeline(
    name="iwes",
    summary="""
*Leveraging Importance Weights in Subset Selection* (ICLR 2023): train on a small part of a labelled pool, chosen in
rounds by how unsure a model is (IWeS-ent) or how much two models disagree (IWeS-dis), each example weighing the
inverse of its probability. Here: small networks on small public data sets, retrained from scratch each round. IWeS
and its baselines run in one loop, `tamis.sampling.IWeS`, with the same pool, start set and training.
""",
    quick=Settings(),
    full=Settings(pools=Settings().pools | FASHION),
    quick_seeds=3,
    full_seeds=10,
    datasets=lambda settings: tuple(settings.pools),
    parts=parts,
    measure=measure,
    tables=tables,
    plots={"curves": _curves, "gains": _gains, "rate": _rate},
)
