"""tamis bench: what it refuses before it measures."""

import pytest
import typer
from tamis.cli import bench, report
from typer.testing import CliRunner

app = typer.Typer()
app.command()(bench.bench)
app.command()(report.report)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "nothing"], "expected one of distill"),
        (["bench", "--only", "("], "--only: expected a regular expression, got ("),
        (["bench", "--allocator", "huge"], "--allocator: expected one of default, kept, both, got huge"),
        (["bench", "--threads", "0"], "--threads: expected all, or counts of 1 to"),
        (["bench", "--threads", "99999999999"], ", got 99999999999"),
        (["bench", "--quick", "--only", "nothing"], "--only: expected an expression that finds a case, got nothing"),
        (["bench", "--json", "/no/such/file"], "'--json': expected a file that can be written, got /no/such/file"),
        (["bench", "--json", "/"], "'--json': expected a file that can be written, got /"),
        (["bench", "--compare", "/no/such/file"], "'--compare': "),
        (["bench", "--compare", __file__], "test_bench.py: expected a result, got"),
        (["report", "--out", "/no/such/file"], "'--out': expected a file that can be written"),
        (["report", "--results", "/no/such/folder"], "'--results': "),
    ],
)
def test_bad_options_are_named(arguments, words):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert words in result.output
