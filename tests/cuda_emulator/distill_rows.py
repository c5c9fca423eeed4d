"""The distillation loss of rows in shared memory, beside the same in float64."""

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np

from .emulator import Library, Memory, given
from .family import OFFSETS, SEEDS, Case
from .formats import FORMATS, Format

FORWARD_KL, REVERSE_KL, JSD, TOTAL_VARIATION, LOGIT_MSE, ALONE = range(6)
HALVES = [FORMATS[0], FORMATS[2], FORMATS[3]]
IGNORED = -7
THREADS = 512
# What a row may be, beside sound: skipped, bad in one way, or of numbers that are none.
SKIPPED, BAD, BROKEN = ("weightless", "ignored"), ("tau", "tau_inf", "alpha", "label", "weight"), ("nan",)
INF, NAN = np.inf, np.nan


@dataclass(frozen=True)
class Walked:
    """Rows of `width` in one buffer: `group` of them `stride` apart, groups `group_stride`."""

    rows: int
    width: int
    group: int
    pad: int

    @property
    def stride(self) -> int:
        return self.width + self.pad

    @property
    def group_stride(self) -> int:
        return self.group * self.stride + 3 * self.pad

    def places(self) -> np.ndarray:
        """[rows, width] of indices."""
        r = np.arange(self.rows).reshape(-1, 1)
        return r // self.group * self.group_stride + r % self.group * self.stride + np.arange(self.width)

    def numbers(self, classes: int) -> list[int]:
        return [classes, self.stride, self.group, self.group_stride]


def case(**changed: Any) -> Case:
    usual = {"form": FORMATS[0], "divergence": FORWARD_KL, "rows": 3, "classes": 77, "padding": 0, "groups": [3, 3, 3]}
    usual |= {"pads": [0, 0, 0], "offsets": [0, 0, 0], "gradient": "fresh", "per_row": False, "tau": 2.0, "alpha": 0.5}
    usual |= {"target": True, "weighted": True, "smoothing": 0.1, "beta": 0.3, "caps": [0, 0], "scales": [1, 1]}
    return usual | {"spread": 1.0, "masked": False, "equal": False, "kinds": [], "blocks": 2, "seed": 1} | changed


@st.composite
def distill_rows_cases(draw: Any) -> Case:
    form = draw(st.sampled_from(HALVES))
    tile = THREADS * 16 // np.dtype(form.bits).itemsize
    divergence, rows = draw(st.integers(0, 5)), draw(st.integers(1, 4))
    target = divergence == ALONE or draw(st.booleans())
    alpha = 0.0 if divergence == ALONE else draw(st.sampled_from([0.25, 1.0, 0.0])) if target else 1.0
    long = st.integers(1, 2 * tile) | st.sampled_from([tile - 1, tile, tile + 1])
    return case(
        form=form,
        divergence=divergence,
        rows=rows,
        classes=draw(st.integers(1, 40) | st.integers(1, 40) | st.integers(41, 700) | long),
        padding=draw(st.integers(0, 9)),
        groups=[draw(st.integers(1, rows)) for _ in range(3)],
        pads=draw(st.just([0, 0, 0]) | st.lists(st.integers(0, 17), min_size=3, max_size=3)),
        offsets=draw(st.just([0, 0, 0]) | st.lists(OFFSETS, min_size=3, max_size=3)),
        gradient=draw(st.sampled_from(["fresh", "fresh", "in place", "none"])),
        per_row=draw(st.booleans()),
        tau=draw(st.sampled_from([1.0, 0.5, 3.0])),
        alpha=alpha,
        target=target,
        weighted=draw(st.booleans()),
        smoothing=draw(st.sampled_from([0.0, 0.1, 1.0])),
        beta=draw(st.sampled_from([0.5, 0.1, 0.9])),
        caps=draw(st.sampled_from([[0, 0], [5, 0], [0, 3], [2, 9]])),
        scales=draw(st.sampled_from([[1, 1], [1, 1], [0.5, -1.5]])),
        spread=draw(st.sampled_from([1.0, 6.0])),
        masked=draw(st.booleans()),
        equal=draw(st.booleans()),
        kinds=draw(st.lists(st.sampled_from(["", "", *SKIPPED, *BAD, *BROKEN]), max_size=rows)),
        blocks=draw(st.integers(1, 3)),
        seed=draw(SEEDS),
    )


def edges() -> list[Case]:
    every = range(6)

    def alpha(divergence: int, number: float = 0.5) -> float:
        return 0.0 if divergence == ALONE else number

    long = [case(form=f, divergence=d, alpha=alpha(d), classes=n, rows=2) for d in every for f, n in
            ((HALVES[0], 3 * 2048 + 5), (HALVES[2], 4096 + 9))]  # fmt: skip
    kinds = [[*SKIPPED, "", ""], [*BAD], [*BROKEN, ""]]
    told = [case(divergence=d, alpha=alpha(d), kinds=k, rows=len(k), per_row=True, gradient=g, blocks=1, classes=19)
            for d in every for k in kinds for g in ("fresh", "none")]  # fmt: skip
    alone = [case(divergence=d, masked=True, alpha=alpha(d), smoothing=0.0, pads=[5, 3, 1], padding=4) for d in every]
    shifted = [case(form=f, divergence=d, alpha=alpha(d), offsets=[a, b, c], classes=40 - a, rows=1, padding=3)
               for f in HALVES for d in (FORWARD_KL, ALONE)
               for a, b, c in ((1, 1, 1), (0, 1, 0), (0, 0, 3), (7, 7, 0), (3, 3, 3))]  # fmt: skip
    one = [case(divergence=d, target=False, alpha=1.0, weighted=False, classes=n, tau=1.0) for d in every[:-1]
           for n in (1, 2, 513)]  # fmt: skip
    equal = [case(divergence=d, equal=how, classes=n, alpha=1.0, target=False) for d in every[:-1]
             for how, n in ((True, 77), ("swapped", 4))]  # fmt: skip
    unasked = [case(target=False, alpha=1.0, ignored=-1), case(tau=1.0, alpha=0.25, smoothing=0.0, masked=True)]
    first = [case(label=0, rows=1), case(label=76, rows=1), case(label=76, rows=1, smoothing=0.0, gradient="in place")]
    mixes = [case(divergence=d, alpha=a, per_row=True) for d in every[:-1] for a in (0.0, 1.0)]
    out = [case(divergence=d, alpha=alpha(d), kinds=["out"], rows=1, smoothing=x) for d in every for x in (0.0, 0.1)]
    apart = [case(divergence=d, alpha=1.0, target=False, kinds=["s_out", "t_out"], tau=1.0, rows=2) for d in every[:-1]]
    faint = [case(divergence=JSD, alpha=1.0, target=False, kinds=[k], tau=1.0, rows=1, classes=2, beta=b)
             for k, b in (("s_faint", 0.7), ("t_faint", 0.3))]  # fmt: skip
    under = [case(divergence=d, alpha=1.0, target=False, kinds=[k], rows=1, tau=1.0) for d in every[:-1]
             for k in ("s_under", "t_under")]  # fmt: skip
    lost = [case(divergence=d, alpha=1.0, kinds=["teacher_nan"], rows=1) for d in every[:-1]]
    blind = [case(divergence=d, alpha=0.0, kinds=["teacher_nan"], rows=1) for d in every[:-1]]
    mixed = [case(divergence=ALONE, alpha=a, rows=1) for a in (0.5, 1.0)]  # of no teacher
    far = [case(divergence=d, alpha=alpha(d), kinds=["far"], rows=1, classes=3 * 2048 + 5, smoothing=1.0)
           for d in (FORWARD_KL, ALONE)]  # fmt: skip
    numbers = [*mixed, *far, *blind, *lost, *under, *out, *apart, *faint]
    return [*long, *told, *alone, *shifted, *one, *equal, *unasked, *first, *mixes, *numbers]


def inputs(c: Case) -> dict[str, Any]:
    """Bits of the logits [rows, classes], and numbers a row in float32; kinds: of each row."""
    form, rows, n = c["form"], c["rows"], c["classes"]
    rng = np.random.default_rng(c["seed"])
    x = {"kinds": (list(c["kinds"]) + [""] * rows)[:rows]}
    s, t = rng.standard_normal((2, rows, n)) * c["spread"]
    if c["spread"] > 1:
        s += np.linspace(-9, 9, n)  # maxima that move
        t -= np.linspace(-9, 9, n)
    if c["equal"]:
        t = s.copy()
    if c["equal"] == "swapped":  # probabilities that are the same bits, beside some that are not
        t[:, :2] = s[:, 1::-1]
    labels = rng.integers(0, n, rows) if "label" not in c else np.full(rows, c["label"])
    if c["masked"] and n > 2:
        out = rng.random((rows, n)) < 0.4
        out[np.arange(rows), labels], out[:, (labels[0] + 1) % n] = False, False
        out[np.arange(rows), labels] = False
        s[out], t[out] = -INF, -INF
        if min(c["scales"]) < 0:
            t[out] = INF
    # alpha that a row may have beside the usual one, which the kernel was told of
    count = rows if c["per_row"] else 1
    tau, alpha = np.full(count, c["tau"], np.float32), np.full(count, c["alpha"], np.float32)
    if c["per_row"]:
        tau *= rng.choice([0.5, 1, 1.5], rows).astype(np.float32)
        if c["target"] and c["divergence"] != ALONE:
            alpha = np.where(rng.random(rows) < 0.3, rng.choice([0, 1], rows), alpha).astype(np.float32)
    weight = rng.uniform(0.5, 2, rows).astype(np.float32)
    for r, kind in enumerate(x["kinds"]):
        of_row = r if c["per_row"] else 0
        if kind == "nan":
            s[r, rng.integers(n)] = NAN
        elif kind == "teacher_nan":
            t[r, rng.integers(n)] = NAN
        elif kind == "far":  # from 0: sums over the classes are of differences
            s[r] += 65536
        elif kind == "out":  # its target is no class of either model
            s[r, labels[r]], t[r, labels[r]] = -INF, -INF
        elif kind in ("s_out", "t_out"):  # of one model alone
            (s if kind == "s_out" else t)[r, (labels[r] + 1) % n] = -INF
        elif kind in ("s_under", "t_under"):  # a thread's slice has none that the whole row's sum has
            model, other = (s, t) if kind == "s_under" else (t, s)
            model[r, 4:8] = -300 - np.arange(4)
            other[r, 5] = -INF
        elif kind in ("s_faint", "t_faint"):  # the least that is not 0, and nothing beside it
            models = (s, t) if kind == "s_faint" else (t, s)
            for model, low in zip(models, (-103.2, -INF), strict=True):
                model[r, 0], model[r, 1:] = 0, low
        elif kind == "weightless":
            weight[r] = 0
        elif kind == "ignored":
            labels[r] = IGNORED
        elif kind == "weight":
            weight[r] = rng.choice([-1, NAN])
        elif kind == "label":
            labels[r] = rng.choice([-1, n])
        elif kind == "tau":
            tau[of_row] = rng.choice([0, -1, NAN])
        elif kind == "tau_inf":
            tau[of_row] = INF
        elif kind == "alpha":
            alpha[of_row] = rng.choice([-0.5, 1.5, NAN])
    with np.errstate(invalid="ignore"):
        x |= {"s": form.encode(s.astype(form.real)), "t": form.encode(t.astype(form.real))}
    return x | {"labels": labels.astype(np.int64), "tau": tau, "alpha": alpha, "weight": weight}


def probabilities(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x - x.max()
    log = x - np.log(np.exp(x).sum())
    return np.exp(log), log


def times(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 where p is, in float32: a class at -inf in both models adds nothing."""
    with np.errstate(invalid="ignore"):
        return np.where(p.astype(np.float32) == 0, 0, p * x)


def divergence(c: Case, s: np.ndarray, t: np.ndarray, tau: float) -> tuple[float, np.ndarray]:
    """tau^2 times it, and its gradient, of rows of logits."""
    kind, beta = c["divergence"], c["beta"]
    if kind == LOGIT_MSE:
        d = np.zeros_like(s)
        np.subtract(s, t, out=d, where=s != t)
        return float((d * d).mean()), 2 * d / len(s)
    (p, log_p), (q, log_q) = probabilities(s / tau), probabilities(t / tau)
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == FORWARD_KL:
            return tau * tau * float(times(q, log_q - log_p).sum()), tau * (p - q)
        if kind == REVERSE_KL:
            apart = times(p, log_p - log_q)
            return tau * tau * float(apart.sum()), tau * (apart - p * apart.sum())
        if kind == TOTAL_VARIATION:
            value, slope = np.abs(p - q).sum() / 2, np.sign(p - q) / 2
        else:
            m = beta * q + (1 - beta) * p
            of_p = times(p, np.log(p / m))
            value = beta * times(q, np.log(q / m)).sum() + (1 - beta) * of_p.sum()
            return tau * tau * float(value), tau * (1 - beta) * (of_p - p * of_p.sum())
    return tau * tau * float(value), tau * (p * slope - p * (p * slope).sum())


def want_of(c: Case, x: dict[str, Any], r: int) -> tuple[float, np.ndarray]:
    """A row's weighted loss and its gradient, in float64."""
    n, form = c["classes"], c["form"]
    one = r if c["per_row"] else 0
    tau, alpha = float(x["tau"][one]), float(x["alpha"][one])
    weight = float(x["weight"][r]) if c["weighted"] else 1.0
    label = int(x["labels"][r]) if c["target"] else 0
    if (c["weighted"] and weight == 0) or (c["target"] and label == c.get("ignored", IGNORED)):
        return 0.0, np.zeros(n)
    good = 0 < tau < INF and 0 <= alpha <= 1 and weight >= 0 and 0 <= label < n
    if not good or (not c["target"] and alpha != 1) or (c["divergence"] == ALONE and alpha != 0):
        return NAN, np.full(n, NAN)
    with np.errstate(invalid="ignore"):
        models = [
            form.decode(x[name][r]).astype(np.float64) * scale for name, scale in zip("st", c["scales"], strict=True)
        ]
    (s, t), (cap, t_cap) = models, c["caps"]
    s, t = (m if not k else k * np.tanh(m / k) for m, k in ((s, cap), (t, t_cap)))
    value, slope = 0.0, np.zeros(n)
    if alpha:
        value, slope = divergence(c, s, t, tau)
        value, slope = alpha * value, alpha * slope
    if c["target"] and alpha < 1:
        p, log_p = probabilities(s)
        smoothing, hot = c["smoothing"], np.arange(n) == label
        ce = -(1 - smoothing) * log_p[label] - (smoothing * log_p.mean() if smoothing else 0)
        value += (1 - alpha) * ce
        slope = slope + (1 - alpha) * (p - (1 - smoothing) * hot - smoothing / n)
    with np.errstate(invalid="ignore"):
        slope = slope * c["scales"][0] * (1 - (s / cap) ** 2 if cap else 1)
    return weight * value, weight * slope


def hard_of(c: Case) -> bool:
    """As asks_hard of pysrc/tamis/distill/cuda.py."""
    if not c["target"] or c["divergence"] == ALONE or (not c["per_row"] and c["alpha"] == 1):
        return False
    return c["per_row"] or c["tau"] != 1 or c["divergence"] != FORWARD_KL


def rounded(form: Format, x: np.ndarray) -> np.ndarray:
    return form.decode(form.encode(x.astype(form.real))).astype(np.float64)


def check(lib: Library, c: Case) -> None:
    form, rows, n = c["form"], c["rows"], c["classes"]
    x, scale = inputs(c), 0.75
    walked = [Walked(rows, n + c["padding"], group, pad) for group, pad in zip(c["groups"], c["pads"], strict=True)]
    memories = []
    for name, walk, offset in zip("st", walked[:2], c["offsets"][:2], strict=True):
        places = walk.places()
        bits = np.full(places.max() + 1, form.nans[0], form.bits)
        bits[places[:, :n]] = x[name]
        memories.append(given(bits, offset, writable=name == "s" and c["gradient"] == "in place"))
    student, teacher = memories
    before, layout, gradient = None, walked[2], None
    if c["gradient"] == "in place":
        before, layout, gradient = student.array.copy(), walked[0], student
    elif c["gradient"] == "fresh":
        gradient = Memory(layout.places().max() + 1, form.bits, c["offsets"][2])
        before = gradient.array.copy()
    sizes = [rows, *walked[0].numbers(n), *walked[1].numbers(n), *layout.numbers(layout.width)]
    sizes += [int(c["per_row"])] * 2 + [c.get("ignored", IGNORED), int(hard_of(c))]
    reals = [c["scales"][0], c["caps"][0], c["scales"][1], c["caps"][1], c["smoothing"], c["beta"]]
    loss = Memory(rows, np.float32)
    options = given(np.array(sizes, np.int64)), given(np.array(reals, np.float64))
    lib.run(
        "distill_rows", form.code, c["divergence"], *options,
        student, None if c["divergence"] == ALONE else teacher, given(x["labels"]) if c["target"] else None,
        given(x["tau"]), given(x["alpha"]), given(x["weight"]) if c["weighted"] else None,
        given(np.array([scale])), loss, gradient, c["blocks"], seed=c["seed"],
    )  # fmt: skip
    bits = None if gradient is None else gradient.array.copy()
    for r in range(rows):
        value, slope = want_of(c, x, r)
        tau = max(float(x["tau"][r if c["per_row"] else 0]), 1)
        size = 1 + tau * tau * c["spread"] if tau < INF else 1
        if np.isnan(value):
            assert np.isnan(loss.array[r]), (r, loss.array[r])
        else:
            np.testing.assert_allclose(loss.array[r], value, rtol=2e-5, atol=3e-6 * size)
        if bits is None:
            continue
        row = layout.places()[r]
        got = form.decode(bits[row]).astype(np.float64)
        assert (got[n:] == 0).all()
        want = slope * scale
        steps = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}[form.name]
        if x["kinds"][r] in ("nan", "teacher_nan") and np.isnan(value):  # logit_mse alone keeps it to its own class
            assert np.isnan(got[:n][np.isnan(want)]).all()
        else:
            tiny = 1.2e-7 if form.name == "f16" else 0
            np.testing.assert_allclose(got[:n], want, rtol=2e-5 + 1.01 * steps, atol=3e-6 * size + tiny)
    if bits is not None:
        touched = np.zeros(len(bits), bool)
        touched[layout.places().reshape(-1)] = True
        np.testing.assert_array_equal(bits[~touched], before[~touched])


distill_rows_edges = edges
