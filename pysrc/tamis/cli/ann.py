"""`tamis ann`: an index of one's own vectors, made, searched and measured."""

import io
import json as json_module
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .paths import stop, writable

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from ..ann import Index, SearchResult
    from ..ann.evaluate import Point

T = TypeVar("T")
ann = typer.Typer(no_args_is_help=True, help="Nearest neighbours: an index of your vectors.")

QUERIES, COLUMNS = 10, 5  # of what a search found, on the screen
MOST = 2**32 - 1  # neighbours, lists or candidates
_FORMATS = ".npy, .fvecs, .fbin or .safetensors"
IndexFile = Annotated[Path, typer.Argument(metavar="INDEX", help="As `tamis ann build` wrote it.")]
Queries = Annotated[Path, typer.Argument(metavar="QUERIES", help=f"{_FORMATS}: q rows of d.")]
Key = Annotated[str | None, typer.Option("--key", help="Which tensor, where a .safetensors file has several.")]


def _replaceable(path: Path) -> Path:
    if path.exists() and not path.is_file():  # a device cannot be renamed over
        raise typer.BadParameter(f"expected a file that can be written, got {path}")
    writable(path)
    return path


@ann.command()
def build(
    vectors: Annotated[Path, typer.Argument(metavar="VECTORS", help=f"{_FORMATS}: n rows of d, read in pieces.")],
    out: Annotated[Path, typer.Option("--out", callback=_replaceable, help="The index, one file.")],
    metric: Annotated[str, typer.Option(help="ip, cosine or l2.")] = "ip",
    spec: Annotated[str | None, typer.Option(help="Such as tree1000,pq2x4,reorder-int8+fp32; else chosen.")] = None,
    ids: Annotated[Path | None, typer.Option(help=".npy of n integers, returned instead of rows.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample that centroids are found from.")] = 0,
    key: Key = None,
) -> None:
    """Make an index of vectors and write it, whole or not at all."""
    from ..ann import Index
    from ..ann.files import read_ids, read_vectors

    x = _read("VECTORS", read_vectors, vectors, key)
    of_rows = None if ids is None else _read("--ids", read_ids, ids)
    begin = time.perf_counter()
    try:
        index = Index.build(x, metric=metric, spec=spec, ids=of_rows, seed=seed, progress=sys.stdout.isatty())
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None
    seconds = time.perf_counter() - begin
    _write("build", lambda: index.save(out))
    typer.echo(
        f"{len(index):,} vectors of {index.d}, {metric}: {index.spec}, {seconds:.1f} s, "
        f"{out.stat().st_size / len(index):.1f} bytes a vector, {out}"
    )


@ann.command()
def search(
    index: IndexFile,
    queries: Queries,
    k: Annotated[int, typer.Option(min=1, max=MOST, help="Neighbours of each query.")] = 10,
    leaves: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Lists looked at; else the index's own tuning.")
    ] = None,
    rerank: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Candidates compared again; else the index's own.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", callback=writable, help="Indices and distances, q rows of k: .npz or .safetensors."),
    ] = None,
    key: Key = None,
) -> None:
    """The nearest vectors of each query: into a file, or those of the first queries as a table."""
    from ..ann import Tuning

    if out is not None and out.suffix not in (".npz", ".safetensors"):
        raise typer.BadParameter(f"--out: expected a file that ends in .npz or .safetensors, got {out}")
    loaded, asked = _both(index, queries, key)
    own = loaded.tuning
    found = loaded.search(asked, k, tuning=Tuning(leaves or own.leaves, rerank or own.rerank, lookup=own.lookup))
    if out is None:
        from .screen import screen

        console, what = screen(), "squared distance" if loaded.metric == "l2" else "similarity"
        shown = min(len(asked), QUERIES), min(k, COLUMNS)
        console.print(f"index and {what}: {shown[0]} of {len(asked):,} queries, {shown[1]} of {k} neighbours")
        console.print(_found(found, *shown))
        return
    _write("search", lambda: _save(found, out))
    typer.echo(f"{len(asked):,} queries, {k} neighbours each: {out}")


@ann.command("eval")
def evaluate(
    index: IndexFile,
    queries: Queries,
    truth: Annotated[
        Path | None, typer.Option(help="Their true neighbours, q rows of k or more: .npy, .ivecs or .ibin.")
    ] = None,
    vectors: Annotated[Path | None, typer.Option(help="What the index is of, to find the true ones with.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours of each query.")] = 10,
    leaves: Annotated[str, typer.Option(help="Which to try, by comma; else some around the index's own.")] = "",
    rerank: Annotated[str, typer.Option(help="The same.")] = "",
    threads: Annotated[int, typer.Option(min=0, max=1024, help="0: as many as torch would use.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", callback=writable, help="Write the result here.")] = None,
    key: Key = None,
) -> None:
    """Recall against queries a second, by how much of the index is looked at."""
    import torch

    from ..ann import Tuning
    from ..ann import evaluate as engine
    from ..ann.files import read_neighbours, read_vectors
    from ..common.files import write
    from .screen import progress, screen

    if truth is not None and vectors is not None:
        raise typer.BadParameter("--truth, --vectors: expected one of them, got both")
    if threads:
        torch.set_num_threads(threads)
    loaded, asked = _both(index, queries, key)
    if k > len(loaded):
        raise typer.BadParameter(f"--k: expected at most {len(loaded)}, the vectors of the index, got {k}")
    grid = engine.tunings(loaded, k)
    some = _numbers("--leaves", leaves) or sorted({t.leaves for t in grid})
    others = _numbers("--rerank", rerank) or sorted({t.rerank for t in grid})
    grid = [Tuning(a, b, lookup=loaded.tuning.lookup) for a in some for b in others]
    if truth is not None:
        given = _read("--truth", read_neighbours, truth)
        try:
            true = engine.check_truth(loaded, given, len(asked), k)
        except ValueError as error:
            raise typer.BadParameter(f"--truth: {_words(error)}: {truth}") from None
    else:
        if vectors is None and engine.own_vectors(loaded) is None:
            raise typer.BadParameter(
                f"--truth, --vectors: expected one of them, as this index keeps no float32 vectors, got none "
                f"({loaded.spec})"
            )
        rows = None if vectors is None else _read("--vectors", read_vectors, vectors)
        try:
            true = engine.true_neighbours(loaded, asked, k, rows)
        except ValueError as error:
            raise typer.BadParameter(f"--vectors: {_words(error)}: {vectors}") from None
    console = screen()
    with progress(console, 8) as bar:
        task = bar.add_task("tunings", total=len(grid))
        points = engine.evaluate(
            loaded, asked, true, k, grid, lambda done, total: bar.update(task, completed=done, visible=done < total)
        )
    used = torch.get_num_threads()
    console.print(
        f"{len(asked):,} queries, {loaded.metric}, {loaded.spec}, {used} {'thread' if used == 1 else 'threads'}"
    )
    console.print(_curve(points, engine.best(points), k))
    if json:
        result = {
            "index": {"n": len(loaded), "d": loaded.d, "metric": loaded.metric, "spec": loaded.spec},
            "queries": len(asked),
            "k": k,
            "threads": used,
            "truth": "file" if truth else "vectors" if vectors else "index",
            "points": [vars(point) for point in points],
        }
        _write("eval", lambda: write(json_module.dumps(result, indent=1) + "\n", json))


def _words(error: Exception) -> str:
    """Of `tamis.<function>: <argument>: expected ..., got ...` the end: the command names its own argument."""
    return str(error).split(": ", 2)[2] if str(error).startswith("tamis.") else str(error)


def _read(argument: str, reader: Callable[..., T], *arguments: Any) -> T:
    try:
        return reader(*arguments)
    except (ValueError, OSError) as error:
        named = "--key" if ": key: " in str(error) else argument
        raise typer.BadParameter(f"{named}: {_words(error)}") from None


def _both(index: Path, queries: Path, key: str | None) -> "tuple[Index, Tensor]":
    from ..ann import Index
    from ..ann.files import read_vectors

    loaded = _read("INDEX", Index.load, index)
    asked = _read("QUERIES", read_vectors, queries, key)
    if asked.shape[1] != loaded.d:
        raise typer.BadParameter(
            f"QUERIES: expected [q, {loaded.d}] for this index, got {list(asked.shape)}: {queries}"
        )
    return loaded, asked


def _numbers(option: str, words: str) -> list[int]:
    numbers = [word.strip() for word in words.split(",")] if words else []
    for word in numbers:
        if not word.isdecimal() or not 1 <= int(word) <= MOST:
            raise typer.BadParameter(f"{option}: expected numbers of 1 to 2^32 - 1, by comma, got {words}")
    return list(dict.fromkeys(map(int, numbers)))


def _write(command: str, save: Callable[[], None]) -> None:
    from safetensors import SafetensorError

    try:
        save()
    except (OSError, ValueError, SafetensorError) as error:
        raise stop(f"tamis.ann.{command}: expected a file that can be written, got {error}") from None


def _save(found: "SearchResult", out: Path) -> None:
    from ..common.files import write

    if out.suffix == ".npz":
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, indices=found.indices.numpy(), distances=found.distances.numpy())
        write(buffer.getvalue(), out)
    else:
        from safetensors.torch import save

        write(save({"indices": found.indices, "distances": found.distances}), out)


def _found(found: "SearchResult", queries: int, columns: int) -> "Table":
    from rich.table import Table

    table = Table("query", *(str(column + 1) for column in range(columns)))
    for column in table.columns:
        column.justify = "right"
    rows = zip(found.indices[:queries].tolist(), found.distances[:queries].tolist(), strict=True)
    for query, (indices, distances) in enumerate(rows):
        cells = zip(indices[:columns], distances[:columns], strict=True)
        table.add_row(str(query), *("-" if i < 0 else f"{i} [dim]{x:.4g}[/dim]" for i, x in cells))
    return table


def _curve(points: "list[Point]", best: "list[Point]", k: int) -> "Table":
    from rich.table import Table

    table = Table(caption="*: none is better in both")
    for column in ("leaves", "rerank", f"recall@{k}", "queries/s", ""):
        table.add_column(column, justify="right")
    for point in points:
        cells = (point.leaves, point.rerank, f"{point.recall:.4f}", f"{point.queries_per_second:,.0f}")
        table.add_row(*map(str, cells), "*" if point in best else "")
    return table
