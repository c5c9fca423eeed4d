"""tamis bench: what it refuses before it measures."""

import pytest
import typer
from tamis.cli import bench
from typer.testing import CliRunner

app = typer.Typer()
app.command()(bench.bench)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "expected one of distill"),
        (["--only", "("], "--only: expected a regular expression, got ("),
        (["--allocator", "huge"], "--allocator: expected one of default, kept, both, got huge"),
        (["--threads", "0"], "--threads: expected counts or all, got 0"),
    ],
)
def test_bad_options_are_named(arguments, words):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert words in result.output
