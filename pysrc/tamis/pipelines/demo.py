"""A next-word student distilled from a teacher on real text, once by plain torch and once by tamis, same seeds.

Both students live in one loop, so every step gives them the same batch and the same teacher, and a machine that slows
down slows both. Only the loss differs: each is timed alone, forward and gradient with respect to the logits.
"""

import copy
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import PYTHON_DOCS, MissingData

UNKNOWN, END = 0, 1  # the classes of a rare word and of a paragraph's end
EVALUATED = 4096  # positions of held-out text: one standard error of the accuracy is 0.6 points
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]|[^\sa-z0-9]")

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # student_logits, teacher_logits, target -> scalar
Report = Callable[[str, int, int, str], None]  # phase, steps done, steps in all, a few words


@dataclass(frozen=True)
class Size:
    """Of a model: it sees `context` words, `width` is that of the embedding and of the layer before the classes."""

    width: int
    context: int
    hidden: int


@dataclass(frozen=True)
class Settings:
    steps: int = 80
    teacher_steps: int = 80
    rows: int = 1024  # positions a step
    classes: int = 16384  # at most: a word seen once is unknown
    teacher: Size = Size(256, 8, 512)
    student: Size = Size(128, 4, 256)
    learning_rate: float = 1e-2
    temperature: float = 2.0
    alpha: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """train, validation: [words] int64, paragraph after paragraph; log_frequency: [classes], of the training words."""

    words: list[str]
    train: Tensor
    validation: Tensor
    log_frequency: Tensor
    sha256: str


@dataclass
class Score:
    """On held-out positions; agreement is the share of them where the guess is the teacher's."""

    accuracy: float
    perplexity: float
    agreement: float = 1.0


@dataclass
class Student:
    """One student's run; milliseconds by step. A step: teacher, student, loss, backward, Adam."""

    loss: list[float] = field(default_factory=list)
    loss_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    loss_bytes: int | None = None  # peak memory of the loss and its gradient, over the logits; None: not to be had here
    score: Score | None = None


@dataclass
class Result:
    settings: Settings
    corpus: dict[str, Any]
    threads: int
    chance: Score  # always the most frequent word; perplexity of the word frequencies
    teacher: Score
    students: dict[str, Student]
    loss_difference: dict[str, dict[str, float]]  # of each student but the first: first, max; absolute, over the steps

    def to_json(self) -> dict[str, Any]:
        """Plain values; each student gains the medians."""
        result = asdict(self)
        for name, student in self.students.items():
            result["students"][name] |= {"median_loss_ms": settled(student.loss_ms)}
            result["students"][name] |= {"median_step_ms": settled(student.step_ms)}
        return result


def settled(milliseconds: Sequence[float]) -> float:
    """The median without the first two steps, which also fault the memory in."""
    return median(milliseconds[2:] or milliseconds)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median of the ratios step by step: what slows one step of the machine slows both sides."""
    return settled([s / f for s, f in zip(slow, fast, strict=True)])


def torch_loss(temperature: float, alpha: float) -> Loss:
    """What its author would write."""

    def loss(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        divergence = F.kl_div(
            F.log_softmax(student_logits / temperature, dim=-1),
            F.log_softmax(teacher_logits / temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        return alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student_logits, target)

    return loss


def tamis_loss(temperature: float, alpha: float) -> Loss:
    from ..distill import distill_loss

    def loss(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        result = distill_loss(student_logits, teacher_logits, target, temperature=temperature, alpha=alpha)
        assert isinstance(result, Tensor)  # a tuple only with return_stats
        return result

    return loss


def losses(settings: Settings, *, compiled: bool = False) -> dict[str, Loss]:
    """The first is what the others are compared with."""
    plain, fast = (make(settings.temperature, settings.alpha) for make in (torch_loss, tamis_loss))
    return {"torch": plain} | ({"torch.compile": torch.compile(plain)} if compiled else {}) | {"tamis": fast}


class NextWord(nn.Module):
    """The words before -> an MLP -> scores of all words against their embeddings. Starts at the word frequencies."""

    def __init__(self, size: Size, log_frequency: Tensor) -> None:
        super().__init__()
        self.context = size.context
        self.embedding = nn.Embedding(len(log_frequency), size.width)
        nn.init.normal_(self.embedding.weight, std=size.width**-0.5)
        self.body = nn.Sequential(
            nn.Flatten(1),
            nn.Linear(size.context * size.width, size.hidden),
            nn.GELU(),
            nn.Linear(size.hidden, size.width),
            norm := nn.LayerNorm(size.width),
        )
        nn.init.constant_(norm.weight, 0.1)  # the frequencies first: at 1, forty steps end at perplexity 413, not 262
        self.bias = nn.Parameter(log_frequency.clone())

    def forward(self, words: Tensor) -> Tensor:
        """words: [rows, at least context] int64 -> logits [rows, classes]."""
        hidden = self.body(self.embedding(words[:, -self.context :]))
        return F.linear(hidden, self.embedding.weight, self.bias)


def read_corpus(text: str, classes: int, seed: int) -> Corpus:
    """Words of lower case, digits and marks; every twentieth paragraph, in a shuffled order, is held out."""
    paragraphs = [words for block in text.lower().split("\n\n") if (words := _WORD.findall(block))]
    order = torch.randperm(len(paragraphs), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {i for rank, i in enumerate(order) if rank % 20 == 0}
    parts = [[p for i, p in enumerate(paragraphs) if (i in held_out) == held] for held in (False, True)]
    counts = Counter(word for paragraph in parts[0] for word in paragraph)
    common = sorted((w for w, n in counts.items() if n > 1), key=lambda w: (-counts[w], w))[: classes - 2]
    number = {word: i for i, word in enumerate(common, start=2)}
    train, validation = (
        torch.tensor([i for p in part for i in (*(number.get(word, UNKNOWN) for word in p), END)], dtype=torch.int64)
        for part in parts
    )
    frequency = torch.bincount(train, minlength=len(common) + 2) + 0.5
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(["<unk>", "<end>", *common], train, validation, (frequency / frequency.sum()).log(), digest)


def draw(words: Tensor, rows: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random positions: the words before [rows, context] and the word itself [rows]."""
    at = torch.randint(context, len(words), (rows,), generator=generator)
    return words[at[:, None] + torch.arange(-context, 0)], words[at]


def run(
    text: str | None = None,
    settings: Settings | None = None,
    *,
    compiled: bool = False,
    report: Report = lambda phase, done, steps, words: None,
) -> Result:
    """Trains the teacher, then a student per loss.

    Args:
        text: paragraphs apart by empty lines; the documentation of the installed Python where None.
        compiled: also a student with the plain loss under torch.compile.
        report: called after each step.
    Raises:
        MissingData: no text, or too little.
    """
    settings = settings or Settings()
    report("text", 0, 1, PYTHON_DOCS.origin if text is None else "")
    corpus = read_corpus(PYTHON_DOCS.load() if text is None else text, settings.classes, settings.seed)
    report("text", 1, 1, f"{len(corpus.train) + len(corpus.validation):,} words, {len(corpus.words):,} classes")
    context = max(settings.teacher.context, settings.student.context)
    if len(corpus.validation) <= context:
        raise MissingData("tamis.demo: expected a text of some hundred paragraphs, apart by empty lines, got less")
    torch.manual_seed(settings.seed)
    teacher = NextWord(settings.teacher, corpus.log_frequency)
    student = NextWord(settings.student, corpus.log_frequency)
    _train_teacher(teacher, corpus, settings, report)
    routes = losses(settings, compiled=compiled)
    models = {name: copy.deepcopy(student) for name in routes}
    students = _train_students(models, teacher, routes, corpus, settings, report)
    generator = torch.Generator().manual_seed(settings.seed)
    words, target = draw(corpus.validation, EVALUATED, context, generator)
    scores = evaluate([teacher, *models.values()], words, target, settings.rows)
    for (name, record), score in zip(students.items(), scores[1:], strict=True):
        record.score = score
        record.loss_bytes = _peak_bytes(routes[name], settings.rows, len(corpus.words))
    baseline, *others = students
    return Result(
        settings=settings,
        corpus={
            "name": PYTHON_DOCS.name if text is None else "text",
            "licence": PYTHON_DOCS.licence if text is None else "",
            "sha256": corpus.sha256,
            "words": len(corpus.train) + len(corpus.validation),
            "classes": len(corpus.words),
        },
        threads=torch.get_num_threads(),
        chance=_chance(corpus, target),
        teacher=scores[0],
        students=students,
        loss_difference={name: _difference(students[baseline].loss, students[name].loss) for name in others},
    )


def _optimizer(model: nn.Module, settings: Settings, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    return optimizer, schedule


def _train_teacher(teacher: NextWord, corpus: Corpus, settings: Settings, report: Report) -> None:
    optimizer, schedule = _optimizer(teacher, settings, settings.teacher_steps)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    for step in range(settings.teacher_steps):
        words, target = draw(corpus.train, settings.rows, teacher.context, generator)
        loss = F.cross_entropy(teacher(words), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        report("teacher", step + 1, settings.teacher_steps, f"loss {loss.item():.3f}")


def _train_students(
    models: dict[str, NextWord],
    teacher: NextWord,
    routes: dict[str, Loss],
    corpus: Corpus,
    settings: Settings,
    report: Report,
) -> dict[str, Student]:
    students = {name: Student() for name in models}
    optimizers = {name: _optimizer(model, settings, settings.steps) for name, model in models.items()}
    generator = torch.Generator().manual_seed(settings.seed + 2)
    for route in routes.values():  # first calls load, allocate and compile
        logits = torch.zeros(settings.rows, len(corpus.words), requires_grad=True)
        torch.autograd.grad(route(logits, logits.detach(), torch.zeros(settings.rows, dtype=torch.int64)), logits)
    for step in range(settings.steps):
        words, target = draw(corpus.train, settings.rows, teacher.context, generator)
        start = time.perf_counter()
        with torch.no_grad():
            teacher_logits = teacher(words)
        shared = time.perf_counter() - start
        for name in list(models)[:: 1 if step % 2 else -1]:  # alternately: nobody always follows the teacher
            optimizer, schedule = optimizers[name]
            start = time.perf_counter()
            logits = models[name](words)
            begin = time.perf_counter()
            loss = routes[name](logits, teacher_logits, target)
            (gradient,) = torch.autograd.grad(loss, logits)  # apart from the model's backward, to time the loss alone
            end = time.perf_counter()
            logits.backward(gradient)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            students[name].step_ms.append(1e3 * (time.perf_counter() - start + shared))
            students[name].loss_ms.append(1e3 * (end - begin))
            students[name].loss.append(loss.item())
            del logits, gradient  # before the other allocates: only one of them is alive, as in a run of its own
        report("students", step + 1, settings.steps, ", ".join(f"{n} {s.loss[-1]:.4f}" for n, s in students.items()))
    return students


def evaluate(models: Sequence[NextWord], words: Tensor, target: Tensor, rows: int) -> list[Score]:
    """Each model on the same positions, the first is the teacher. words: [n, context], target: [n]; rows at a time."""
    nll = torch.zeros(len(models), dtype=torch.float64)
    guesses: list[list[Tensor]] = [[] for _ in models]
    with torch.no_grad():
        for start in range(0, len(target), rows):
            some, wanted = words[start : start + rows], target[start : start + rows]
            for i, model in enumerate(models):
                logits = model(some)
                nll[i] += F.cross_entropy(logits, wanted, reduction="sum")
                guesses[i].append(logits.argmax(dim=-1))
    guessed = [torch.cat(g) for g in guesses]
    return [
        Score(_share(g, target), float((total / len(target)).exp()), _share(g, guessed[0]))
        for g, total in zip(guessed, nll, strict=True)
    ]


def _share(a: Tensor, b: Tensor) -> float:
    return float((a == b).double().mean())


def _chance(corpus: Corpus, target: Tensor) -> Score:
    perplexity = float((-corpus.log_frequency[target].double()).mean().exp())
    return Score(_share(target, corpus.log_frequency.argmax()), perplexity, 0.0)


def _difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return {"first": differences[0], "max": max(differences)}


def _peak_bytes(loss: Loss, rows: int, classes: int) -> int | None:
    """Of the loss and its gradient alone; both logits are there before. The gradient counts."""
    from ..bench.memory import peak_bytes

    student_logits = torch.randn(rows, classes, requires_grad=True)
    teacher_logits, target = torch.randn(rows, classes), torch.zeros(rows, dtype=torch.int64)
    return peak_bytes(lambda: torch.autograd.grad(loss(student_logits, teacher_logits, target), student_logits))
