"""What the Lazy Neuron pipeline is made of, against plain forms of it in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tamis.pipelines import data, lazy_neuron_latency
from tamis.pipelines.data import LIBRARIES, LIBRARY_DOCS, PYTHON_DOCS, PYTHON_SOURCE
from tamis.pipelines.lazy_neuron_images import batches, corruptions, mislabelled, split
from tamis.pipelines.lazy_neuron_latency import KEPT, Latency, measured, ways
from tamis.pipelines.lazy_neuron_meter import calibration_error, fires, initial_drift, random_drift
from tamis.pipelines.lazy_neuron_models import Block, Decoder, Mixer, Patches, Seq2Seq, Size, block_flops, mlp, vit
from tamis.pipelines.lazy_neuron_speed import compare
from tamis.pipelines.lazy_neuron_text import SYMBOLS, corpora, corrupted, windows
from tamis.pipelines.lazy_neuron_train import LOGGED, seeded, trained
from tamis.sparse_mlp import activation_sparsity, restore, sparsify
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Size(8, 20, 2, heads=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_model_stays_in_its_modes() -> None:
    model = nn.Sequential(mlp(3, 4), nn.BatchNorm1d(4))
    model.train()
    model[1].eval()
    fires(model, lambda: None)
    assert [module.training for module in model.modules()] == [True] * 5 + [False]


def test_what_cannot_be_sparse_is_refused_before_it_runs() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="LeakyReLU"):
        compare(model, (2,), lambda: pytest.fail("it ran"))


def test_prose_is_its_library_s_wherever_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in an environment that is called torch."""
    roots = {"torch": tmp_path / "torch" / "site" / "torch", "python": tmp_path / "torch" / "lib"}
    for name, root in roots.items():
        root.mkdir(parents=True)
        (root / "one.py").write_text(f'"""{name.title()} says a sentence that is long enough to be kept as prose."""')
    monkeypatch.setattr(data, "_roots", lambda: roots)
    found = data._read_by_library(data._find_python_docs())
    assert "Torch says" in found["torch"] and "Python" not in found["torch"]
    assert "Python says" in found["python"] and "Torch" not in found["python"]


def test_fires_by_hand() -> None:
    """Units that see x, -x, 1 and -1: on for 3, 1, 4 and 0 of four tokens, of which one is at 0."""
    model = mlp(1, 4)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [0.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 1.0, -1.0]))
    x = torch.tensor([[1.0], [2.0], [0.0], [-3.0]])
    model.train()
    found = fires(model, lambda: model(x))
    assert list(found) == [""] and model.training
    assert found[""].counts.tolist() == [2, 1, 4, 0] and found[""].tokens == 4
    assert found[""].nonzero == pytest.approx(100 * 7 / 16)
    assert found[""].rates.tolist() == [0.5, 0.25, 1.0, 0.0]
    twice = fires(model, lambda: (model(x), model(x[:2])))
    assert twice[""].counts.tolist() == [4, 1, 6, 0] and twice[""].tokens == 6
    assert not list(model[2]._forward_pre_hooks)


def test_fires_against_float64_and_the_drop_in() -> None:
    model = seeded(lambda: Seq2Seq(30, 12, SMALL), 1)
    source, target = (torch.randint(30, (5, 9), generator=generator(i)) for i in range(2))
    found = fires(model, lambda: model(source, target))
    assert list(found) == ["encoder.0.mlp", "encoder.1.mlp", "decoder.0.mlp", "decoder.1.mlp"]
    assert all(each.tokens == 45 for each in found.values())
    theirs = activation_sparsity(model, [{"source": source, "target": target}])
    assert {name: each.nonzero for name, each in found.items()} == pytest.approx(theirs)
    seen: list[torch.Tensor] = []
    copy = seeded(lambda: Seq2Seq(30, 12, SMALL), 1).double()
    handle = copy.decoder[1].mlp[0].register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    copy(source, target)
    handle.remove()
    truth = (seen[0].numpy() > 0).sum((0, 1))
    assert np.abs(found["decoder.1.mlp"].counts.numpy() - truth).max() <= 1  # a value near 0 may round
    sparsify(model, 5)
    kept = fires(model, lambda: model(source, target))
    assert all(0 < each.nonzero <= 100 * 5 / 20 for each in kept.values())
    restore(model)
    assert {n: e.nonzero for n, e in fires(model, lambda: model(source, target)).items()} == pytest.approx(theirs)


def test_calibration_error_by_hand_and_by_loops() -> None:
    # Bins of 1/15: confidences .5, .5 (one right), .9 (wrong), 1 (right).
    probs = np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.0, 1.0]])
    assert calibration_error(probs, np.array([0, 1, 1, 1])) == pytest.approx((0 + 0.9 + 0) / 4)
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(4, 0.5), 500)
    y = rng.integers(4, size=500)
    want = 0.0
    for b in range(15):
        inside = [i for i in range(500) if b / 15 < probs[i].max() <= (b + 1) / 15]
        if inside:
            accuracy = np.mean([probs[i].argmax() == y[i] for i in inside])
            want += len(inside) / 500 * abs(accuracy - np.mean([probs[i].max() for i in inside]))
    assert calibration_error(probs, y) == pytest.approx(want, rel=1e-12)
    assert calibration_error(np.eye(3), np.arange(3)) == 0


@pytest.mark.parametrize("loss", ["cross-entropy", "squares"])
def test_random_drift_is_autograds(loss: str) -> None:
    units, classes, draws = 40, 6, 5
    got = random_drift(units, classes, draws, 3, loss)
    rng = np.random.default_rng(3)
    p = torch.tensor(rng.uniform(-1, 1, units), requires_grad=True)
    means = []
    for _ in range(draws):
        v = torch.tensor(rng.normal(0, units**-0.5, (classes, units)))
        label = torch.tensor(int(rng.integers(classes)))
        f = v @ torch.relu(p)
        value = (
            F.cross_entropy(f, label) if loss == "cross-entropy" else (f - F.one_hot(label, classes)).square().sum() / 2
        )
        (grad,) = torch.autograd.grad(value, p)
        means.append(float(grad[p > 0].mean()))
    assert got["means"] == pytest.approx(means, rel=1e-9)
    assert 0 <= got["positive"] <= 1


def test_squares_drift_is_known() -> None:
    """E of the derivative is p_i E |v_i|^2, that is p_i classes / units."""
    got = random_drift(64, 10, 4000, 0, "squares")
    p = np.random.default_rng(0).uniform(-1, 1, 64)
    error = np.std(got["means"], ddof=1) / 4000**0.5
    assert abs(np.mean(got["means"]) - p[p > 0].mean() * 10 / 64) < 4 * error


def test_initial_drift_by_differences() -> None:
    model = seeded(lambda: mlp(3, 6, 4), 2).double()
    x, y = torch.randn(7, 3, generator=generator(), dtype=torch.float64), torch.arange(7) % 4
    (got,) = initial_drift(model, lambda: F.cross_entropy(model(x), y)).values()
    p, (_, _, down) = model[0](x).detach(), model
    slopes = []
    for token, unit in (p > 0).nonzero().tolist():
        ends = []
        for step in (1e-6, -1e-6):
            moved = p.clone()
            moved[token, unit] += step
            ends.append(F.cross_entropy(down(torch.relu(moved)), y).item())
        slopes.append((ends[0] - ends[1]) / 2e-6)
    assert got == pytest.approx(np.mean(slopes) * 7, rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flops_are_those_that_torch_counts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    size, tokens = Size(8, 20, 1, heads=2), 5
    block = Block(size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        block(torch.randn(1, tokens, 8))
    assert counter.get_total_flops() == tokens * sum(block_flops(size, tokens).values())
    # By hand: 4 projections of 8 x 8, scores and sums over 5 tokens; 20 x 8 up, a quarter of it down.
    assert block_flops(size, tokens, 0.25) == {"attention": 2 * 4 * 64 + 2 * 2 * 5 * 8, "mlp": 2 * 160 + 2 * 160 / 4}


@torch.no_grad()
def test_decoding_with_a_cache_is_the_whole_model() -> None:
    model = seeded(lambda: Decoder(11, 12, SMALL), 0)
    tokens = torch.randint(11, (3, 10), generator=generator())
    whole, caches = model(tokens), model.caches(3)
    steps = torch.cat([model(tokens[:, i : i + 1], caches) for i in range(10)], 1)
    torch.testing.assert_close(steps, whole, atol=1e-5, rtol=1e-5)
    later = tokens.clone()
    later[:, 6:] = 0
    torch.testing.assert_close(model(later)[:, :6], whole[:, :6])  # it does not look ahead
    torch.testing.assert_close(torch.cat([*model.decode(tokens)], 1), steps)


def test_patches_and_classifiers() -> None:
    patches = Patches(4, 2, 4)
    with torch.no_grad():
        patches.project.weight.copy_(torch.eye(4))
        patches.project.bias.zero_()
    image = torch.arange(16.0).reshape(1, 4, 4)
    assert patches(image)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    for model in (vit(8, 2, SMALL, 10), Mixer(8, 2, SMALL, 10)):
        assert model(torch.randn(3, 8, 8)).shape == (3, 10)
    mixer = Mixer(8, 2, SMALL, 10)
    names = list(fires(mixer, lambda: mixer(torch.randn(2, 8, 8))))
    assert names == [f"layers.{i}.{kind}_mlp" for i in range(2) for kind in ("token", "channel")]


def test_spans_are_cut_out_and_can_be_put_back() -> None:
    window = torch.randint(SYMBOLS, (50, 24), generator=generator())
    source, target = corrupted(window, 3, generator(1))
    assert source.shape == (50, 24 - 6 + 2) and target.shape == (50, 8)
    starts = set()
    for row, cut, want in zip(window.tolist(), source.tolist(), target.tolist(), strict=True):
        assert want[0] == SYMBOLS + 1 and want[4] == SYMBOLS + 2
        for mark, span in ((SYMBOLS + 1, want[1:4]), (SYMBOLS + 2, want[5:8])):
            at = cut.index(mark)
            starts.add(at)
            cut = cut[:at] + span + cut[at + 1 :]
        assert cut == row
    assert len(starts) > 8


def test_corpora_hold_out_whole_pieces_in_the_same_symbols() -> None:
    first, _ = corpora([[f"aaab{i}" for i in range(20)], [f"zq{i}" for i in range(20)]])
    assert len(first.held) == 5 + 2 + 6 and len(first.train) > 5 * len(first.held)
    symbols = sorted("ab012345678\nzq")  # no training piece has a 9
    read = "".join("?" if i == SYMBOLS else symbols[i] for i in first.held)
    assert read == "aaab?\n\naaab1?"
    rare, _ = corpora([[chr(200 + i) * (i + 1) for i in range(120)], ["x"]])
    assert int(rare.train.max()) == SYMBOLS and (rare.train == SYMBOLS).any()
    cut = windows(first.train, 500, 7, generator())
    text = first.train.tolist()
    assert cut.shape == (500, 7) and all(row in [text[i : i + 7] for i in range(len(text))] for row in cut.tolist())


def test_the_texts_are_there() -> None:
    source, docs = PYTHON_SOURCE.load(), LIBRARY_DOCS.load()
    assert len(source) > 100 and sum(map(len, source)) > 2_000_000
    assert tuple(docs) == LIBRARIES and min(map(len, docs.values())) > 300_000
    assert {*docs["numpy"].split("\n\n")[:50]} <= {*PYTHON_DOCS.load().split("\n\n")}


def test_wrong_labels_are_wrong_and_as_many_as_said() -> None:
    y = torch.arange(1000) % 10
    wrong = mislabelled(y, 0.4, generator())
    changed = wrong != y
    assert int(changed.sum()) == 400 and torch.equal(mislabelled(y, 0.0, generator()), y)
    shifts = torch.bincount((wrong - y)[changed] % 10, minlength=10)
    assert shifts[0] == 0 and shifts[1:].min() > 20
    assert torch.equal(y, torch.arange(1000) % 10)


def test_corruptions() -> None:
    x = torch.full((200, 8, 8), 0.5)
    noisy = corruptions(x, 0)
    assert list(noisy) == ["Gaussian", "impulse", "shot"]
    assert all(float(value.min()) >= 0 and float(value.max()) <= 1 for value in noisy.values())
    inside = noisy["Gaussian"][(noisy["Gaussian"] > 0) & (noisy["Gaussian"] < 1)]
    assert len(inside) / 12800 == pytest.approx(0.9044, abs=0.01)  # within 0.5 / 0.3 deviations
    hit = noisy["impulse"] != 0.5
    assert hit.float().mean() == pytest.approx(0.15, abs=0.01)
    assert noisy["impulse"][hit].mean() == pytest.approx(0.5, abs=0.03)
    assert noisy["shot"].std() == pytest.approx((0.5 / 12) ** 0.5, rel=0.05)
    assert torch.equal(corruptions(x, 0)["shot"], noisy["shot"])


def test_images_are_split_by_seed_and_scaled_by_their_training_part() -> None:
    first, again, other = (split("digits", (300, 200), seed) for seed in (0, 0, 1))
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)
    rows = torch.cat([first.x, first.test_x]).flatten(1)
    assert len(rows) == 500 and len(rows.unique(dim=0)) == 500
    scaled = first.scaled(first.x)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-5) and float(scaled.std()) == pytest.approx(1, abs=1e-5)
    draw = batches(first.x, first.y, 64, generator())
    epoch = torch.cat([draw()[0] for _ in range(4)]).flatten(1)
    assert len(epoch.unique(dim=0)) == 256


def test_training_counts_before_and_after() -> None:
    model = seeded(lambda: mlp(4, 16, 3), 0)
    x, y = torch.randn(64, 4, generator=generator()), torch.arange(64) % 3
    before = fires(model, lambda: model(x))[""].nonzero
    record = trained(
        model, lambda: F.cross_entropy(model(x), y), {"all": lambda: model(x)}, lambda: model(x[:8]), 30, 1e-2
    )
    after = fires(model, lambda: model(x))[""]
    assert record["start"] == {"all": [before]} and record["end"] == {"all": [after.nonzero]}
    assert [step for step, _ in record["trajectory"]] == [0, *(step for step in LOGGED if step < 30), 30]
    assert record["dead"] == pytest.approx(100 * float((after.counts == 0).double().mean()))
    assert record["often"] == pytest.approx(100 * float((after.rates > 0.5).double().mean()))
    assert sum(record["rates"]) == 16 and record["tokens"] == 64


def test_latency_times_the_same_network_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Latency(d=16, units=64, layers=2, repeats=2)
    x = torch.randn(1, settings.d, generator=generator())
    with torch.no_grad():
        for layer in range(settings.layers):
            sparse, dense, own = (ways(settings, 0)[name](x, layer) for name in ("sparse", "torch", "own"))
            torch.testing.assert_close(own, dense)
            assert not torch.allclose(sparse, dense)
        monkeypatch.setattr(lazy_neuron_latency, "KEPT", 1.0)
        torch.testing.assert_close(ways(settings, 0)["sparse"](x, 1), dense)
    assert KEPT == 0.0625
    threads = torch.get_num_threads()
    found = measured(settings, 0)
    torch.set_num_threads(threads)
    assert found.pop("last_cache") >= 0 and set(found) == {"sparse", "torch", "own"} and min(found.values()) > 0
