"""Its plots, onto matplotlib axes."""

from statistics import fmean, median
from typing import Any

import numpy as np

from . import lazy_neuron_claims as claims
from .claims import student
from .lazy_neuron_images import FRESH, RANDOM_INPUTS, RANDOM_LABELS
from .lazy_neuron_train import RATES
from .runner import Results, by_seed

BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f"
BROWN, YELLOW, BLACK = "#7f4f24", "#c9b400", "black"
LIT = ((claims.SEQ2SEQ, "encoder-decoder, fill spans", GREEN), (claims.TEXT_CLASSES, "encoder, text classes", SKY))


def _bare(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _base(results: Results) -> str:
    return next(part for part in results if part.startswith("characters-"))


def _trajectory(results: Results, part: str) -> tuple[Any, Any]:
    """Steps, with 0 drawn at 1/2; seeds by steps of the mean over layers."""
    records = list(results[part].values())
    steps = np.array([step for step, _ in records[0]["trajectory"]], float)
    return np.maximum(steps, 0.5), np.array([[fmean(row) for _, row in record["trajectory"]] for record in records])


def training(axes: Any, results: Results) -> None:
    """Nonzeros over the steps, every kind of network."""
    first = next(part for part in results if part.startswith("vit-")).removeprefix("vit-")
    kinds = [
        (_base(results), "decoder, characters", BLUE, "-"),
        *((part, label, colour, "-") for part, label, colour in LIT),
        (f"vit-{first}", f"vision Transformer, {first}", ORANGE, "-"),
        (f"mixer-{first}", f"MLP-Mixer, {first}", PINK, "-"),
        (f"mlp-{first}", f"2-layer MLP, {first}", YELLOW, "-"),
        ("mlp-digits", "2-layer MLP, digits", GREY, "-"),
        *(
            (
                next(part for part in results if part.startswith(kind.replace(" ", "-"))),
                f"2-layer MLP, {kind}",
                colour,
                "--",
            )
            for kind, colour in ((RANDOM_LABELS, RED), (RANDOM_INPUTS, BROWN), (FRESH, BLACK))
        ),
    ]
    for part, label, colour, style in kinds:
        steps, curves = _trajectory(results, part)
        axes.plot(steps, curves.mean(0), style, color=colour, label=label, linewidth=2)
        if len(curves) > 1:
            ends = np.array([student(column) for column in curves.T.tolist()])
            axes.fill_between(steps, *np.clip(ends, 0, 100).T, color=colour, alpha=0.12, linewidth=0)
    axes.set(
        xscale="log",
        xlabel="training step (0 is drawn at 1/2)",
        ylabel="hidden values that are not 0, %",
        ylim=(0, None),
    )
    axes.set_title("How many hidden values fire, from the start to the end of training", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    _bare(axes)


def layers(axes: Any, results: Results) -> None:
    """By layer, at the start and at the end."""
    deep = max((part for part in results if part.startswith("characters-") and "x" in part), key=_depth)
    first = next(part for part in results if part.startswith("vit-")).removeprefix("vit-")
    shown = [
        (deep, "decoder"),
        (claims.SEQ2SEQ, "encoder-decoder"),
        (claims.TEXT_CLASSES, "encoder"),
        (f"vit-{first}", "ViT"),
        (f"mixer-{first}", "Mixer"),
        (f"mlp-{first}", "MLP"),
    ]
    at, ticks, names, middles = 0.0, [], [], []
    for part, label in shown:
        record = next(iter(results[part].values()))
        begun = at
        for i, layer in enumerate(record["layers"]):
            for when, colour, shift in (("start", "#bbbbbb", -0.2), ("end", BLUE, 0.2)):
                values = by_seed(results, part, claims.of_layer(i, when))
                low, high = student(values)
                mean = fmean(values)
                axes.bar(
                    at + shift,
                    mean,
                    0.4,
                    color=colour,
                    label=when if at == 0 else None,
                )
                axes.errorbar(at + shift, mean, [[mean - low], [high - mean]], color="black", capsize=2, linewidth=0.8)
            ticks.append(at)
            names.append(_short(layer) if len(record["layers"]) > 1 else "")
            at += 1
        middles.append(((begun + at - 1) / 2, label))
        at += 0.8
    axes.set_xticks(ticks, names, fontsize=8)
    axes.set_ylim(0, None)
    top = axes.get_ylim()[1]
    for middle, label in middles:
        axes.text(middle, top * 1.02, label, ha="center", fontsize=9)
    axes.set(
        xlabel="layer (encoder and decoder; MLPs across tokens and across channels)",
        ylabel="hidden values that are not 0, %",
    )
    axes.set_title(f"Which layers fire, before and after training (images: {first})", fontsize=11, pad=22)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _bare(axes)


def _depth(part: str) -> int:
    return int(part.split("-")[-1].split("x")[0])


def _short(layer: str) -> str:
    """encoder.1.mlp to enc 2, layers.0.channel_mlp to ch 1, on two lines."""
    stack, index, mlp = layer.split(".")[-3:]
    mlp = mlp.replace("channel", "ch").replace("token", "tok")
    kind = {"encoder": "enc", "decoder": "dec"}.get(stack, mlp.removesuffix("mlp").strip("_"))
    return f"{kind}\n{int(index) + 1}".strip()


def scaling(axes: Any, results: Results) -> None:
    """Width, depth and data of the character model."""
    parts = [part for part in results if part.startswith("characters-") and part != claims.TOPK_CHARACTERS]
    shapes = sorted(
        (part for part in parts if "x" in part), key=lambda part: tuple(map(int, part.split("-")[-1].split("x")))
    )
    sizes = [part for part in parts if "x" not in part]
    at = 0.0
    ticks: list[float] = []
    names: list[str] = []
    for group, colour in ((shapes, BLUE), (sizes, ORANGE)):
        for part in group:
            values = by_seed(results, part, claims.nonzero())
            low, high = student(values)
            axes.bar(at, fmean(values), 0.7, color=colour)
            axes.errorbar(at, fmean(values), [[fmean(values) - low], [high - fmean(values)]], color="black", capsize=3)
            name = part.removeprefix("characters-")
            tail = (
                f"{int(name.removeprefix('of-')):,}\ncharacters"
                if name.startswith("of-")
                else f"{name.replace('x', ' x ')}"
            )
            names.append(tail)
            ticks.append(at)
            at += 1
        at += 0.6
    axes.set_xticks(ticks, names, fontsize=8)
    axes.set(
        ylabel="hidden values that are not 0, %",
        xlabel="layers x units" + ("; training text where it is not all" if sizes else ""),
    )
    axes.set_title(f"Width, depth{' and data' if sizes else ''}: character models after the same steps", fontsize=11)
    _bare(axes)


def neurons(axes: Any, results: Results) -> None:
    """How often the neurons of the character model fire."""
    part = _base(results)
    counts = np.array([record["rates"] for record in results[part].values()], float)
    share = 100 * counts.sum(0) / counts.sum()
    edges = np.array(RATES)
    edges[0] = edges[1] ** 2 / edges[2]
    axes.stairs(share, 100 * edges, fill=True, color=BLUE, alpha=0.8)
    dead = fmean(by_seed(results, part, claims.plainly("dead")))
    axes.set(xscale="log", xlabel="share of held-out tokens in which a neuron fires, %", ylabel="share of neurons, %")
    axes.set_title(f"How often each neuron of the character model fires; {dead:.1f}% never do", fontsize=11)
    _bare(axes)


def topk(axes: Any, results: Results) -> None:
    """Top-k less dense, by network and test."""
    parts = [part for part in results if part.startswith("top-k-")]
    rows: list[tuple[str, list[float]]] = []
    for part in parts:
        k = next(name for name in next(iter(results[part].values())) if name != "dense")
        name, noise = part.removeprefix("top-k-").rsplit("-", 1)
        network = "ViT" if name == "vit" else f"MLP, {name}"
        tests = ("clean", "corrupted") if float(noise) == 0 else ("clean",)
        for test in tests:
            value = claims.on("clean") if test == "clean" else claims.corrupted_accuracy
            gains = by_seed(results, part, claims.over_dense(k, value))
            rows.append((f"{network}, {float(noise):.0%} wrong labels, {test} test", gains))
    for row, (_, gains) in enumerate(rows):
        low, high = student(gains)
        decided = len(gains) > 1
        colour = GREEN if decided and low > 0 else RED if decided and high < 0 else GREY
        axes.errorbar(
            fmean(gains), row, xerr=[[fmean(gains) - low], [high - fmean(gains)]], fmt="o", color=colour, capsize=3
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy, top-k (25% of the units) less dense, points;\ncorrupted: mean of three corruptions")
    axes.set_title("Top-k against dense, trained alike", fontsize=11)
    _bare(axes)


def speed(axes: Any, results: Results) -> None:
    """Against dense: operations that are counted, times that are measured, and the accuracy."""
    (record,) = results["speed"].values()
    rows = record["decode"]["trained dense"]
    names = [name for name in rows if name != "dense"]
    at = np.arange(len(names))
    operations = {name: sum(flops.values()) for name, flops in record["flops"].items()}
    steps = record["step_seconds"]
    bars = (
        ("operations of the blocks, counted", "#bbbbbb", [[operations["dense"] / operations[name]] for name in names]),
        (
            "decoding, measured",
            BLUE,
            [claims.against(rows["dense"]["seconds"], rows[name]["seconds"]) for name in names],
        ),
        ("training step, measured", ORANGE, [claims.against(steps["dense"], steps[name]) for name in names]),
    )
    for shift, (label, colour, values) in zip((-0.27, 0.0, 0.27), bars, strict=True):
        middle = np.array([median(each) for each in values])
        axes.bar(at + shift, middle, 0.27, label=label, color=colour)
        if len(values[0]) > 1:
            quartiles = np.array([np.quantile(each, [0.25, 0.75]) for each in values]).T
            axes.errorbar(
                at + shift, middle, np.abs(quartiles - middle), fmt="none", color="black", capsize=2, linewidth=1
            )
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(at, [f"top-{name}\n{rows[name]['accuracy']:.1f}% right" for name in names])
    dense = f"dense: {1 / median(rows['dense']['seconds']):.0f} tokens/s, {rows['dense']['accuracy']:.1f}% right"
    axes.set(ylabel="times as fast as dense", xlabel=f"neurons a token, next characters right ({dense})")
    axes.set_title("A trained model, sparsified; lines are quartiles of paired runs", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    _bare(axes)
