"""From the records to the claims and the tables."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median, quantiles
from typing import Any

from .claims import Measured, over_seeds, student
from .lazy_neuron_images import CORRUPTIONS, FRESH, RANDOM_INPUTS, RANDOM_LABELS
from .lazy_neuron_models import Size, block_flops
from .pages import number, table
from .runner import Record, Results, by_seed, differences

TOPK_CHARACTERS, SEQ2SEQ, TEXT_CLASSES = "characters-top-k", "fill-spans", "text-classes"
Value = Callable[[Record], float]


def characters(layers: int, width: int) -> str:
    return f"characters-{layers}x{width}"


def sized(size: int) -> str:
    return f"characters-of-{size}"


def images(kind: str, name: str) -> str:
    return f"{kind}-{name}"


def random(kind: str, width: int) -> str:
    return f"{kind.replace(' ', '-')}-{width}"


def topk(name: str, noise: float) -> str:
    return f"top-k-{name}-{noise:g}"


def nonzero(when: str = "end", probe: str = "held") -> Value:
    """Percent, mean over the layers."""
    return lambda record: fmean(record[when][probe])


def ratio(probe: str = "held") -> Value:
    """End to start."""
    return lambda record: nonzero("end", probe)(record) / nonzero("start", probe)(record)


def plainly(name: str) -> Value:
    return lambda record: float(record[name])


def of_layer(layer: int, when: str = "end", probe: str = "held") -> Value:
    return lambda record: float(record[when][probe][layer])


def emerged(layer: int) -> Value:
    return lambda record: of_layer(layer)(record) / of_layer(layer, "start")(record)


def on(test: str) -> Value:
    """Accuracy on a test set, of what `robustness` says of one network."""
    return lambda record: float(record["accuracy"][test])


def with_k(k: object, value: Value) -> Value:
    return lambda record: value(record[str(k)])


def over_dense(k: object, value: Value) -> Value:
    return lambda record: value(record[str(k)]) - value(record["dense"])


def at_rate(rate: float, kind: str, name: str) -> Value:
    return lambda record: float(record[f"{rate:g}"][kind][name])


def against(dense: Sequence[float], own: Sequence[float]) -> list[float]:
    """How many times as fast, by pairs of runs that followed each other."""
    return [first / second for first, second in zip(dense, own, strict=True)]


def spread(values: Iterable[float]) -> str:
    """Mean and, of several, the half width of the interval."""
    values = list(values)
    low, high = student(values)
    half, mean = (high - low) / 2, fmean(values)
    mean = mean if abs(mean) > 1e-9 * half else 0.0  # what rounding leaves
    return number(mean) + (f" ± {number(half)}" if len(values) > 1 else "")


def _worst(by_set: dict[str, list[float]], largest: bool) -> Measured:
    """The set that speaks most against the claim, by the end of its interval; the others beside."""
    pick = max if largest else min
    worst = pick(by_set, key=lambda name: student(by_set[name])[1 if largest else 0])
    return over_seeds(by_set[worst], **{"counted": worst}, **{name: spread(values) for name, values in by_set.items()})


def measure(settings: Any, results: Results) -> dict[str, Measured]:
    words = settings.text
    base, deep = characters(words.layers, words.width), characters(words.deep, words.width)
    wide, narrow = (characters(words.layers, pick(words.widths)) for pick in (max, min))

    def seeds(part: str, value: Value, **beside: Any) -> Measured:
        return over_seeds(by_seed(results, part, value), **beside)

    def mean(part: str, value: Value) -> float:
        return fmean(by_seed(results, part, value))

    def ends(part: str, probe: str = "held") -> dict[str, float]:
        return {f"percent at the {when}": mean(part, nonzero(when, probe)) for when in ("start", "end")}

    def fewer(first: str, second: str) -> Measured:
        values = differences(*(by_seed(results, part, nonzero()) for part in (first, second)))
        return over_seeds(values, **{part: mean(part, nonzero()) for part in (first, second)})

    def of_images(kind: str) -> Measured:
        counted = {name: by_seed(results, images(kind, name), ratio()) for name in settings.images.sets}
        found = _worst(counted, largest=True)
        dead: dict[str, Any] = {
            f"percent dead, {name}": mean(images(kind, name), plainly("dead")) for name in settings.images.sets
        }
        more = settings.images.beside if kind == "mlp" else ()
        others = {name: mean(images(kind, name), ratio()) for name in more}
        seen = {f"{name}, training inputs": mean(images(kind, name), ratio("train")) for name in counted}
        return Measured(
            found.value, found.interval, found.seeds, found.n, found.values, {**found.beside, **seen, **dead, **others}
        )

    def of_random(kind: str) -> Measured:
        width, *others = settings.images.random_widths
        part = random(kind, width)
        beside: dict[str, Any] = {f"{other} units": mean(random(kind, other), ratio("train")) for other in others}
        if kind != FRESH:
            beside |= {
                f"{name} at rate {rate:g}": mean("rates", at_rate(rate, kind, key))
                for rate in settings.images.other_rates
                for name, key in (("end / start", "ratio"), ("percent dead", "dead"))
            }
        return seeds(
            part, ratio("train"), **ends(part, "train"), **beside, **{"percent dead": mean(part, plainly("dead"))}
        )

    def against_dense(noise: float, value: Value, largest: bool, beside_noise: float | None = None) -> Measured:
        first, *others = settings.topk.ks

        def gains(name: str, k: int, noise: float) -> list[float]:
            return by_seed(results, topk(name, noise), over_dense(k, value))

        found = _worst({name: gains(name, first, noise) for name in settings.topk.sets}, largest)
        worst = found.beside["counted"]
        beside = {f"k = {k}, {name}": spread(gains(name, k, noise)) for k in others for name in settings.topk.sets}
        if beside_noise is not None:
            beside |= {
                f"{beside_noise:.0%} noise, {name}": spread(gains(name, first, beside_noise))
                for name in settings.topk.sets
            }
        if noise in settings.topk.transformer_noises:
            beside["vision Transformer"] = spread(gains("vit", first, noise))
        beside["dense, where counted"] = number(mean(topk(worst, noise), with_k("dense", value)))
        return Measured(found.value, found.interval, found.seeds, found.n, found.values, {**found.beside, **beside})

    clean, noisy = settings.topk.noises[:2]
    last = settings.topk.noises[-1]
    (drift,) = results["drift"].values()
    faster = by_seed(results, "latency", lambda record: record["sparse"] / min(record["torch"], record["own"]))
    return {
        "lazy-sparsity-emerges": seeds(base, ratio(), **ends(base)),
        "lazy-very-few-nonzero": seeds(
            base, nonzero(), **{"widest": mean(wide, nonzero()), "deepest": mean(deep, nonzero())}
        ),
        "lazy-wider-sparser": fewer(wide, narrow),
        "lazy-deeper-sparser": fewer(deep, base),
        "lazy-language": _worst({part: by_seed(results, part, ratio()) for part in (SEQ2SEQ, TEXT_CLASSES)}, True),
        "lazy-vision-transformer": of_images("vit"),
        "lazy-mixer": of_images("mixer"),
        "lazy-two-layer-mlp": of_images("mlp"),
        "lazy-train-equals-eval": _train_equals_eval(results, base),
        "lazy-all-depths": _all_depths(results, deep),
        "lazy-not-dead": seeds(base, plainly("dead"), tokens=f"{min(by_seed(results, base, plainly('tokens'))):.0f}"),
        "lazy-random-labels": of_random(RANDOM_LABELS),
        "lazy-random-inputs": of_random(RANDOM_INPUTS),
        "lazy-infinite-data": of_random(FRESH),
        "lazy-initial-drift": _drift(drift, results),
        "lazy-flop-reduction": seeds(base, lambda record: (1 + nonzero()(record) / 100) / 2),
        "lazy-faster-inference": over_seeds(
            faster,
            **{
                "MB of dense weights, in turn": settings.latency.megabytes,
                "MB of the last cache": max(by_seed(results, "latency", plainly("last_cache"))) / 1e6 or "unknown",
            },
            **{
                f"microseconds, {name}": 1e6 * mean("latency", plainly(key))
                for key, name in (
                    ("sparse", "sparse"),
                    ("torch", "dense, torch's product"),
                    ("own", "dense, own product"),
                )
            },
        ),
        "lazy-topk-quality": over_seeds(
            differences(*(by_seed(results, part, plainly("loss")) for part in (TOPK_CHARACTERS, base))),
            dense=mean(base, plainly("loss")),
            **{"top-k": mean(TOPK_CHARACTERS, plainly("loss"))},
        ),
        "lazy-topk-label-noise": against_dense(noisy, on("clean"), False, last),
        "lazy-topk-input-corruption": against_dense(clean, corrupted_accuracy, False),
        "lazy-topk-calibration": against_dense(clean, plainly("ece"), True),
        "lazy-topk-calibration-label-noise": against_dense(noisy, plainly("ece"), True, last),
    }


def corrupted_accuracy(record: Record) -> float:
    return fmean(record["accuracy"][name] for name in CORRUPTIONS)


def _train_equals_eval(results: Results, part: str) -> Measured:
    """Undefined unless sparsity emerges on both."""
    ends = [by_seed(results, part, nonzero("end", probe)) for probe in ("train", "held")]
    ratios = {probe: by_seed(results, part, ratio(probe)) for probe in ("train", "held")}
    beside = {f"end / start, {probe}": spread(values) for probe, values in ratios.items()}
    found = over_seeds(differences(*ends), **beside)
    if all(student(values)[1] < 0.5 for values in ratios.values()):
        return found
    return Measured(found.value, (float("nan"), float("nan")), found.seeds, found.n, found.values, beside)


def _all_depths(results: Results, part: str) -> Measured:
    layers = range(len(next(iter(results[part].values()))["layers"]))
    values = [by_seed(results, part, emerged(i)) for i in layers]
    worst = max(layers, key=lambda i: fmean(values[i]))
    return over_seeds(values[worst], **{f"layer {i + 1}": fmean(values[i]) for i in layers})


def _drift(record: Record, results: Results) -> Measured:
    means = record["cross-entropy, 10 classes"]["means"]
    beside: dict[str, Any] = {}
    for name, kind in record.items():
        beside[name] = f"{spread(kind['means'])}; above 0 for {kind['positive']:.0%} of the active units"
    (networks,) = results["drift-networks"].values()
    for name, values in networks.items():
        beside[f"character model, {len(values)} starts, {name}"] = spread(values)
    return Measured(fmean(means), student(means), n=len(means), beside=beside)


# Tables.


def tables(settings: Any, results: Results) -> str:
    return "\n".join(
        [
            _layers_table(results),
            _scaling_table(settings, results),
            _topk_table(settings, results),
            _speed_table(settings, results),
        ]
    )


def watched(results: Results) -> list[str]:
    """Parts that are one training run each."""
    return [part for part, records in results.items() if "trajectory" in next(iter(records.values()))]


def _layers_table(results: Results) -> str:
    rows = []
    for part in watched(results):
        first = next(iter(results[part].values()))
        probe = next(iter(first["end"]))
        layers = [number(fmean(by_seed(results, part, of_layer(i, "end", probe)))) for i in range(len(first["layers"]))]
        rows.append(
            [
                part,
                *(spread(by_seed(results, part, nonzero(when, probe))) for when in ("start", "end")),
                ", ".join(layers),
                *(number(fmean(by_seed(results, part, plainly(name)))) for name in ("dead", "often")),
                *(
                    number(fmean(by_seed(results, part, plainly(name)))) if name in first else ""
                    for name in ("train_loss", "accuracy")
                ),
            ]
        )
    head = (
        "run",
        "% nonzero, start",
        "end",
        "by layer",
        "% dead",
        "% firing for more than half",
        "training loss",
        "held out, % right",
    )
    return (
        "Hidden values that are not 0, in percent, on held-out data; with random labels or inputs, on what was "
        "trained on:\n\n" + table(head, rows)
    )


def _scaling_table(settings: Any, results: Results) -> str:
    words = settings.text
    full = characters(words.layers, words.width)
    parts = [
        *(characters(words.layers, width) for width in sorted((*words.widths, words.width))),
        characters(words.deep, words.width),
        *(sized(size) for size in words.sizes),
        TOPK_CHARACTERS,
    ]
    rows = []
    for part in parts:
        s = fmean(by_seed(results, part, nonzero()))
        layers, width = _shape(part, words)
        size = Size(words.d, width, layers)
        flops = [sum(block_flops(size, words.context // 2, share).values()) * layers / 1e6 for share in (1.0, s / 100)]
        rows.append(
            [
                part,
                *(spread(by_seed(results, part, nonzero("end", probe))) for probe in ("held", "train")),
                *(spread(by_seed(results, part, plainly(name))) for name in ("loss", "accuracy")),
                f"{flops[0]:.3f}",
                f"{flops[1]:.3f}",
            ]
        )
    head = (
        "character model",
        "% nonzero, held out",
        "training",
        "loss, nats",
        "accuracy, %",
        "MFLOP a token",
        "zeros skipped",
    )
    data = f", data ({full} sees all of the text)" if words.sizes else ""
    return f"Width, depth{data} and top-{words.k}:\n\n" + table(head, rows)


def _shape(part: str, words: Any) -> tuple[int, int]:
    if "x" in part.split("-")[-1]:
        layers, width = part.split("-")[-1].split("x")
        return int(layers), int(width)
    return words.layers, words.width


def _topk_table(settings: Any, results: Results) -> str:
    rows = []
    for name, noises in [
        *((name, settings.topk.noises) for name in settings.topk.sets),
        ("vit", settings.topk.transformer_noises),
    ]:
        for noise in noises:
            part = topk(name, noise)
            for k in next(iter(results[part].values())):
                fired = fmean(by_seed(results, part, with_k(k, plainly("nonzero"))))
                values = [*map(on, ("clean", *CORRUPTIONS)), plainly("ece"), plainly("nonzero")]
                rows.append(
                    [
                        "vision Transformer" if name == "vit" else f"MLP, {name}",
                        f"{noise:.0%}",
                        k if k == "dense" else f"top-{k}",
                        *(spread(by_seed(results, part, with_k(k, value))) for value in values),
                        number((1 + fired / 100) / 2) if name == "vit" else "",
                    ]
                )
    head = ("network", "wrong labels", "run as", "accuracy, clean", *CORRUPTIONS, "ECE", "% nonzero", "operations")
    return (
        f"Top-k against dense, {settings.topk.width} hidden units, trained alike; operations are those of the "
        "Transformer's MLPs, zeros skipped, to all:\n\n" + table(head, rows)
    )


def _times(dense: Sequence[float], own: Sequence[float]) -> str:
    if own is dense or len(own) < 2:
        return ""
    low, middle, high = quantiles(against(dense, own), n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _speed_table(settings: Any, results: Results) -> str:
    (record,) = results["speed"].values()
    own = settings.speed
    rows = []
    for trained, by_k in record["decode"].items():
        for k, row in by_k.items():
            flops = record["flops"].get(k) if trained == "trained dense" else None
            steps = record["step_seconds"].get(k) if trained == "trained dense" else None
            rows.append(
                [
                    trained,
                    k if k == "dense" else f"top-{k} ({int(k) / own.d_ff:.1%})",
                    number(row["fires"]),
                    f"{flops['mlp'] / 1e6:.2f}" if flops else "",
                    f"{sum(flops.values()) / 1e6:.2f}" if flops else "",
                    f"{1 / median(row['seconds']):.0f}",
                    _times(by_k["dense"]["seconds"], row["seconds"]),
                    f"{1e3 * median(steps):.0f}" if steps else "",
                    _times(record["step_seconds"]["dense"], steps) if steps else "",
                    f"{row['accuracy']:.2f}",
                    f"{row['loss']:.3f}",
                ]
            )
    narrow = {k: f"{1 / median(row['seconds']):.0f}" for k, row in record["narrow"].items()}
    words = " and ".join(f"{rate} tokens/s {'dense' if k == 'dense' else f'as top-{k}'}" for k, rate in narrow.items())
    head = (
        "model",
        "run as",
        "% nonzero",
        "MFLOP a token, MLPs",
        "blocks",
        "tokens/s",
        "to dense (quartiles)",
        "ms a training step",
        "to dense (quartiles)",
        "accuracy, %",
        "loss, nats",
    )
    return (
        f"A character model of width {own.d}, {own.layers} layers of {own.d_ff} units, one thread: {own.tokens} tokens "
        f"decoded one by one with a cache of keys and values; training steps of {own.batch * own.context} tokens with "
        "AdamW. Operations are counted, two a multiply-add, times are medians:\n\n"
        + table(head, rows)
        + f"\nWith {own.narrow} units, not trained: {words}.\n"
    )
