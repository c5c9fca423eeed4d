"""`tamis reproduce lazy-neuron`: sparsity in the MLPs of Transformers, and top-k (2210.06313)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from . import lazy_neuron_claims as claims
from . import lazy_neuron_plots as plots
from . import lazy_neuron_text as text
from .lazy_neuron_images import RANDOM, RANDOM_LABELS, TRUE, Images, TopK, classifier, random_inputs, rates, robustness
from .lazy_neuron_latency import Latency, latency
from .lazy_neuron_meter import random_drift
from .lazy_neuron_speed import Speed, speed
from .lazy_neuron_text import Text
from .runner import Part, Pipeline, Record


@dataclass(frozen=True)
class Settings:
    """draws: of the output matrix, for the drift; starts: of a whole network."""

    text: Text = field(default_factory=Text)
    images: Images = field(default_factory=Images)
    topk: TopK = field(default_factory=TopK)
    speed: Speed = field(default_factory=Speed)
    latency: Latency = field(default_factory=Latency)
    units: int = 512
    draws: int = 2000
    starts: int = 100


SUMMARY = """
In the MLP of a Transformer, relu(x K) V, few entries of relu(x K) are not 0 once the model is trained, though nothing
asks for it: the paper reports 3.0% for T5-Base and 6.3% for ViT-B/16, on language and on images, with random labels,
random inputs and infinite data. It derives a drift at initialisation that pushes what is active down, and keeps the k
largest entries of each token by force (top-k). The figures come from its abstract; the drift is remembered, and derived
anew here.

Here: small ReLU networks with biases, pre-norm, AdamW at a constant rate without weight decay, the gradient's norm at
most 1 but where top-k and dense classifiers are compared; a causal character model
of Python's own source (width 64, 2 layers of 256 units, 800 steps); an encoder and a decoder that fill spans cut out of
prose; an encoder that tells whose documentation a window of prose is; vision Transformers, Mixers and 2-layer MLPs on
images. Counted are exact zeros after the ReLU, in float32; there is no padding. Rates and steps were set on seed 100,
before a run with the claims' seeds; that of 2-layer MLPs decides how much sparsity there is, and --full tries others.
"""


def _drift(settings: Settings, seed: int) -> Record:
    kinds = {
        "cross-entropy, 10 classes": (10, settings.draws, "cross-entropy"),
        "cross-entropy, 1000 classes": (1000, max(2, settings.draws // 20), "cross-entropy"),
        "squares, 10 classes": (10, settings.draws, "squares"),
    }
    return {
        name: random_drift(settings.units, classes, draws, seed, loss) for name, (classes, draws, loss) in kinds.items()
    }


def _drift_networks(settings: Settings, seed: int) -> Record:
    first = seed * settings.starts
    return dict(text.initial_drifts(settings.text, range(first, first + settings.starts)))


Run = Callable[[Settings, int], Record]


def _characters(width: int, layers: int, k: int | None = None, size: int | None = None) -> Run:
    return lambda settings, seed: text.characters(settings.text, width, layers, seed, k, size)


def _classifier(kind: str, name: str, labels: str = TRUE) -> Run:
    return lambda settings, seed: classifier(kind, name, labels, settings.images, seed)


def _random(width: int, fresh: bool | None) -> Run:
    """fresh: None for digits with random labels."""

    def run(settings: Settings, seed: int) -> Record:
        images = settings.images
        if fresh is None:
            return classifier("mlp", "digits", RANDOM_LABELS, replace(images, width=width), seed)
        return random_inputs(fresh, width, images, seed)

    return run


def _robustness(kind: str, name: str, noise: float) -> Run:
    return lambda settings, seed: robustness(kind, name, settings.topk, settings.images, noise, seed)


def parts(settings: Settings) -> list[Part]:
    words, images, topk = settings.text, settings.images, settings.topk
    found: dict[str, Run] = {claims.characters(words.layers, words.width): _characters(words.width, words.layers)}
    found |= {claims.characters(words.layers, width): _characters(width, words.layers) for width in words.widths}
    found[claims.characters(words.deep, words.width)] = _characters(words.width, words.deep)
    found[claims.TOPK_CHARACTERS] = _characters(words.width, words.layers, words.k)
    found |= {claims.sized(size): _characters(words.width, words.layers, None, size) for size in words.sizes}
    found[claims.SEQ2SEQ] = lambda s, seed: text.seq2seq(s.text, seed)
    found[claims.TEXT_CLASSES] = lambda s, seed: text.text_classes(s.text, seed)
    for name in images.sets:
        found |= {claims.images(kind, name): _classifier(kind, name) for kind in ("vit", "mixer", "mlp")}
    found |= {claims.images("mlp", name): _classifier("mlp", name) for name in images.beside}
    if images.random_transformer:
        found["vit-random-labels"] = _classifier("vit", next(iter(images.sets)), RANDOM_LABELS)
    for width in images.random_widths:
        found |= {claims.random(kind, width): _random(width, fresh) for kind, fresh in RANDOM.items()}
    if images.other_rates:
        found["rates"] = lambda s, seed: rates(s.images, seed)
    for noise in topk.noises:
        found |= {claims.topk(name, noise): _robustness("mlp", name, noise) for name in topk.sets}
    first = next(name for name in topk.sets if name != "digits")
    found |= {claims.topk("vit", noise): _robustness("vit", first, noise) for noise in topk.transformer_noises}
    return [  # the longest first, or a process would wait for it alone
        Part("drift-networks", _drift_networks, seeded=False),
        Part("drift", _drift, seeded=False),
        *(Part(name, run) for name, run in found.items()),
        Part("speed", lambda s, seed: speed(s.speed, seed), seeded=False, alone=True),
        Part("latency", lambda s, seed: latency(s.latency, seed), alone=True),
    ]


def datasets(settings: Settings) -> Sequence[str]:
    own = (*settings.images.sets, *settings.images.beside, *settings.topk.sets, "digits")
    return ["python-source", "library-docs", *dict.fromkeys(own)]


FULL = Settings(
    text=Text(sizes=(20_000, 200_000)),
    images=Images(
        sets={"mnist-5k": (4000, 1000), "fashion-mnist": (60_000, 10_000)},
        random_widths=(256, 1024),
        random_transformer=True,
        other_rates=(1e-3, 1e-2),
    ),
    topk=TopK(
        sets={"digits": (1297, 500), "fashion-mnist": (10_000, 10_000)},
        transformer_noises=(0.0, 0.4),
    ),
    speed=Speed(steps=400, repeats=31),
    starts=1000,
)

PIPELINE = Pipeline(
    name="lazy-neuron",
    summary=SUMMARY,
    quick=Settings(speed=Speed(steps=30, held=12, repeats=7, train_repeats=3)),
    full=FULL,
    quick_seeds=3,
    full_seeds=5,
    datasets=datasets,
    parts=parts,
    measure=claims.measure,
    tables=claims.tables,
    plots={
        "training": plots.training,
        "layers": plots.layers,
        "scaling": plots.scaling,
        "neurons": plots.neurons,
        "topk": plots.topk,
        "speed": plots.speed,
    },
)
