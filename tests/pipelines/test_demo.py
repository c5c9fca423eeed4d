"""The demonstration, tiny: it learns, and both losses are one loss. No timing is asserted."""

import json
import random
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch
from tamis.pipelines.data import PYTHON_DOCS, ChecksumMismatch, Dataset, MissingData, sha256
from tamis.pipelines.demo import Result, Settings, Size, read_corpus, run

TINY = Settings(steps=40, teacher_steps=40, rows=64, classes=300, teacher=Size(24, 4, 32), student=Size(16, 2, 16))


pytestmark = pytest.mark.usefixtures("one_thread")


def text(paragraphs: int = 400) -> str:
    """A language with one rule, broken now and then: words are counted up."""
    names = [a + b for a in ("ka", "lo", "mi", "ru") for b in ("na", "te", "so")]
    generator = random.Random(0)
    starts = [generator.randrange(12) for _ in range(paragraphs)]
    rows = [[start, *(start + j + generator.choice((1, 1, 1, 5)) for j in range(11))] for start in starts]
    return "\n\n".join(" ".join(names[i % 12] for i in row) + "." for row in rows)


@pytest.fixture(scope="module")
def result() -> Result:
    return run(text(), TINY)


def test_losses_agree_and_students_learn(result: Result) -> None:
    assert list(result.students) == ["torch", "tamis"]
    assert result.loss_difference["tamis"]["first"] < 1e-5
    assert result.loss_difference["tamis"]["max"] < 1e-3
    plain, tamis = result.students.values()
    assert plain.score and tamis.score
    assert tamis.score.accuracy > 2 * result.chance.accuracy
    assert tamis.score.perplexity < 0.7 * result.chance.perplexity
    assert tamis.score.accuracy == pytest.approx(plain.score.accuracy, abs=0.02)
    assert result.teacher.agreement == 1.0 and result.teacher.perplexity < 0.5 * result.chance.perplexity


def test_same_seed_same_run() -> None:
    short = replace(TINY, steps=3, teacher_steps=3)
    first, again, other = (run(text(), replace(short, seed=seed)) for seed in (0, 0, 1))
    for name, student in first.students.items():
        assert again.students[name].loss == student.loss
        assert other.students[name].loss[0] != student.loss[0]


def test_json(result: Result) -> None:
    got = json.loads(json.dumps(result.to_json()))
    assert set(got) == {"settings", "corpus", "threads", "chance", "teacher", "students", "loss_difference"}
    assert got["settings"]["steps"] == TINY.steps and got["corpus"]["classes"] == 15  # 12 names, the full stop, 2 marks
    for student in got["students"].values():
        keys = {"loss", "loss_ms", "step_ms", "loss_bytes", "score", "median_loss_ms", "median_step_ms"}
        assert set(student) == keys and set(student["score"]) == {"accuracy", "perplexity", "agreement"}
        assert len(student["loss"]) == len(student["step_ms"]) == TINY.steps
        assert all(isfinite(x) for x in student["loss"]) and all(x > 0 for x in student["loss_ms"])


def test_report_counts_up() -> None:
    seen: list[tuple[str, int, int]] = []
    settings = replace(TINY, steps=2, teacher_steps=1)
    run(text(), settings, report=lambda phase, done, steps, _: seen.append((phase, done, steps)))
    assert seen == [("text", 0, 1), ("text", 1, 1), ("teacher", 1, 1), ("students", 1, 2), ("students", 2, 2)]


def test_corpus() -> None:
    corpus = read_corpus(text(), 300, seed=0)
    assert corpus.words[:2] == ["<unk>", "<end>"] and len(corpus.words) == len(corpus.log_frequency) == 15
    assert len(corpus.train) + len(corpus.validation) == 400 * 14
    assert len(corpus.validation) == 20 * 14
    assert float(corpus.log_frequency.exp().sum()) == pytest.approx(1)
    capped = read_corpus(text(), 8, seed=0)
    assert len(capped.words) == 8 and int(capped.train.max()) == 7 and bool((capped.train == 0).any())


def test_too_little_text() -> None:
    with pytest.raises(MissingData, match="got less"):
        run("one paragraph", TINY)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typer = pytest.importorskip("typer")
    from tamis.cli.demo import demo
    from typer.testing import CliRunner

    monkeypatch.setattr("tamis.pipelines.demo.Settings", lambda **given: replace(TINY, **given))
    app = typer.Typer()
    app.command()(demo)
    source, out = tmp_path / "words.txt", tmp_path / "out.json"
    source.write_text(text())
    arguments = ["--text", str(source), "--steps", "3", "--threads", "1", "--json", str(out), "--no-bench"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    for line in ("plain torch", "next word right", "perplexity", "loss and its gradient", "losses differ"):
        assert line in outcome.output
    assert json.loads(out.read_text())["threads"] == 1
    missing = CliRunner().invoke(app, ["--text", str(tmp_path / "absent")])
    assert missing.exit_code == 2 and "absent" in missing.output


def test_python_docs_are_prose() -> None:
    assert len(PYTHON_DOCS.find()) > 1000
    prose = PYTHON_DOCS.read([Path(torch.__file__).parent / "_torch_docs.py"]).split("\n\n")
    assert len(prose) > 500 and len(set(prose)) == len(prose)
    assert all(p.endswith(".") and ">>>" not in p for p in prose)


def words(**changes: object) -> Dataset[str]:
    fields: dict[str, object] = {"name": "words", "licence": "CC0-1.0", "origin": "here", "shape": "str"}
    fields |= {"install": "pip install words", "find": lambda: [], "read": lambda files: files[0].read_text()}
    fields |= {"sha256": "0" * 64}
    return Dataset(**(fields | changes))  # type: ignore[arg-type]


def test_missing_data_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"words is not installed: pip install words$"):
        words().load()
    with pytest.raises(MissingData, match=r"no file .*absent"):
        words().load(tmp_path / "absent")
    with pytest.raises(ValueError, match="a reason for none"):
        words(sha256=None)


def test_checksum(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("some words")
    with pytest.raises(ChecksumMismatch, match=f"words.txt: expected sha256 0+, got {sha256([file])}"):
        words().load(file)
    pinned = words(sha256=sha256([file]))
    assert pinned.load(file) == "some words"
    assert words(sha256=sha256([file]), find=lambda: [file]).load() == "some words"


def test_downloads_only_on_the_users_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_DATA", str(tmp_path / "kept"))
    file = tmp_path / "words.txt"
    file.write_text("some words")
    remote = words(sha256=sha256([file]), urls=[file.as_uri()])
    with pytest.raises(MissingData, match="allow a download"):
        remote.load()
    with pytest.raises(ChecksumMismatch):
        words(urls=[file.as_uri()]).load(download=True)
    assert not any(path.is_file() for path in (tmp_path / "kept").rglob("*"))  # a wrong file is never kept
    assert remote.load(download=True) == "some words"
    file.unlink()
    assert remote.load() == "some words"
    with pytest.raises(MissingData, match="no download from"):
        words(urls=[file.as_uri() + "x"]).load(download=True)
