"""Vectors, true neighbours and ids in files: each read whole or refused, and none of it ever executed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..common.checks import fail

VECTORS = (".npy", ".fvecs", ".fbin", ".safetensors")
NEIGHBOURS = (".npy", ".ivecs", ".ibin")
_CHUNK = 1 << 22  # numbers that are looked at at once
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Array = np.ndarray[Any, Any]


def read_vectors(path: str | os.PathLike[str], key: str | None = None) -> Tensor:
    """Vectors, finite.

    Args:
        path: `.npy`; `.fvecs`, each row behind its int32 d; `.fbin`, int32 n and d, then the rows; `.safetensors`.
            All stay in their file and are read as they are needed, but for float64, which is rounded to float32.
        key: which tensor of a safetensors file, where there are more.
    Returns:
        Tensor: [n, d], both at least 1; float32, float16 or bfloat16.
    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind; truncated, or longer than its header says; without vectors; with NaN or inf.
    """
    fn = "read_vectors"
    place, kind = _place(fn, path, VECTORS)
    if key is not None and kind != ".safetensors":
        fail(fn, "key", "none, but for a .safetensors file", key)
    if kind == ".safetensors":
        given = _safetensors(fn, place, key)
    else:
        array = _npy(fn, place) if kind == ".npy" else _rows(fn, place, "<f4")
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            _refuse(fn, place, "floats", f"{array.dtype}")
        given = torch.from_numpy(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
    if given.dtype == torch.float64:
        given = given.to(torch.float32)
    if given.dtype not in _FLOATS:
        _refuse(fn, place, "floats", str(given.dtype))
    if given.dim() != 2 or not given.numel():
        _refuse(fn, place, "[n, d], at least one vector", str(list(given.shape)))
    for rows in _pieces(given.shape):
        finite = given[rows].isfinite().all(1)
        if not bool(finite.all()):
            row = rows.start + int(finite.logical_not().nonzero()[0])
            _refuse(fn, place, "finite numbers", f"NaN or inf in row {row}")
    return given


def read_neighbours(path: str | os.PathLike[str]) -> Tensor:
    """Which neighbours are true, the nearest first.

    Args:
        path: `.npy` of integers; `.ivecs`, each row behind its int32 k; `.ibin`, int32 n and k, then the rows, and
            behind them perhaps as many float32 distances, which are not read.
    Returns:
        Tensor: int64 [q, k], both at least 1, not negative.
    Raises:
        FileNotFoundError, ValueError: as read_vectors.
    """
    fn = "read_neighbours"
    place, kind = _place(fn, path, NEIGHBOURS)
    array = _npy(fn, place) if kind == ".npy" else _rows(fn, place, "<i4")
    if array.ndim != 2 or not array.size:
        _refuse(fn, place, "[q, k], at least one neighbour", str(list(array.shape)))
    return _integers(fn, place, array)


def read_ids(path: str | os.PathLike[str]) -> Tensor:
    """int64 [n], not negative, of a `.npy` file of integers. Raises as read_vectors."""
    fn = "read_ids"
    array = _npy(fn, _place(fn, path, (".npy",))[0])
    if array.ndim != 1 or not array.size:
        _refuse(fn, Path(path), "[n], at least one id", str(list(array.shape)))
    return _integers(fn, Path(path), array)


def _refuse(fn: str, place: Path, expected: str, got: str) -> NoReturn:
    fail(fn, "path", expected, f"{got}: {place}")


def _place(fn: str, path: str | os.PathLike[str], kinds: tuple[str, ...]) -> tuple[Path, str]:
    place = Path(path)
    kind = place.suffix.lower()
    if kind not in kinds:
        fail(fn, "path", f"a file that ends in {', '.join(kinds)}", place)
    if not place.is_file():
        fail(fn, "path", "a file", f"{place}, which is none", FileNotFoundError)
    return place, kind


def _npy(fn: str, place: Path) -> Array:
    """Mapped, copy on write: torch warns of memory that cannot be written."""
    try:
        array = np.load(place, mmap_mode="c")
    except Exception as error:  # of a broken header also those of Python's parser
        _refuse(fn, place, "a whole .npy file of numbers", str(error).splitlines()[0])
    if not isinstance(array, np.memmap):  # an archive, whatever it is called
        _refuse(fn, place, "a .npy file", "another kind of file")
    wanted, size = array.offset + array.nbytes, place.stat().st_size
    if size != wanted:
        _refuse(fn, place, f"{wanted} bytes for {list(array.shape)}", f"{size} bytes")
    return array


def _rows(fn: str, place: Path, dtype: str) -> Array:
    """Of the vecs formats, whose rows each begin with their length, and of bin, which begins with its shape."""
    size = place.stat().st_size
    with place.open("rb") as file:
        start = file.read(8)
    head = np.frombuffer(start, "<i4", len(start) // 4)
    if place.suffix.lower() in (".fvecs", ".ivecs"):
        width = int(head[0]) if len(head) else 0
        if width < 1:
            _refuse(fn, place, "a row's length of 1 or more first", str(width) if len(head) else "an empty file")
        count, rest = divmod(size, 4 * (width + 1))
        if rest:
            _refuse(fn, place, f"rows of {4 * (width + 1)} bytes", f"{size} bytes, {rest} too many")
        table = np.memmap(place, "<i4", "c", shape=(count, width + 1))
        for rows in _pieces(table.shape):
            other = np.flatnonzero(table[rows, 0] != width)
            if len(other):
                row = rows.start + int(other[0])
                _refuse(fn, place, f"rows of length {width}, as the first", f"{table[row, 0]} in row {row}")
        return table[:, 1:].view(dtype)
    if len(head) < 2 or head.min() < 1:
        _refuse(fn, place, "a number of rows and one of columns, 1 or more, first", str(head.tolist()))
    count, width = head.tolist()
    wanted = [8 + 4 * count * width] + ([8 + 8 * count * width] if dtype == "<i4" else [])  # with distances
    if size not in wanted:
        expected = f"{' or '.join(map(str, wanted))} bytes for {[count, width]}"
        _refuse(fn, place, expected, f"{size} bytes")
    return np.memmap(place, dtype, "c", offset=8, shape=(count, width))


def _safetensors(fn: str, place: Path, key: str | None) -> Tensor:
    try:
        with safe_open(place, "pt") as file:
            names = list(file.keys())
            wanted = names[0] if key is None and len(names) == 1 else key
            if wanted in names:
                tensor: Tensor = file.get_tensor(wanted)
                return tensor
    except (SafetensorError, OSError) as error:
        _refuse(fn, place, "a whole .safetensors file", str(error))
    if key is None:
        _refuse(fn, place, "one tensor, or a key", f"{len(names)} tensors{': ' if names else ''}{', '.join(names[:9])}")
    fail(fn, "key", f"one of {', '.join(names[:9])}" if names else "a tensor that is there", f"{key}: {place}")


def _integers(fn: str, place: Path, array: Array) -> Tensor:
    if array.dtype.kind not in "iu":
        _refuse(fn, place, "integers", str(array.dtype))
    least, most = int(array.min()), int(array.max())
    if least < 0 or most >= 2**63:
        _refuse(fn, place, "integers from 0 to 2^63 - 1", str(least if least < 0 else most))
    return torch.from_numpy(np.array(array, np.int64))


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _CHUNK // shape[1])
    return (slice(begin, begin + step) for begin in range(0, shape[0], step))
