"""Files of vectors and of neighbours: each format round trip, and each way of being no such file."""

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from tamis.ann.files import read_ids, read_neighbours, read_vectors

X = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
TRUE = np.arange(21, dtype=np.int32).reshape(7, 3)


def with_(number, row, column):
    x = X.copy()
    x[row, column] = number
    return x


def vecs(table):
    lengths = np.full((len(table), 1), table.shape[1], "<i4")
    return np.hstack([lengths.view(table.dtype), table]).tobytes()


def bin_(table):
    return struct.pack("<2i", *table.shape) + table.tobytes()


def npy(table):
    buffer = io.BytesIO()
    np.save(buffer, table)
    return buffer.getvalue()


def tensors(**named):
    return save({name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in named.items()})


@pytest.fixture
def put(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


VECTORS = {"x.npy": npy(X), "x.fvecs": vecs(X), "x.fbin": bin_(X), "x.safetensors": tensors(x=X), "X.NPY": npy(X)}
NEIGHBOURS = {"t.npy": npy(TRUE), "t.ivecs": vecs(TRUE), "t.ibin": bin_(TRUE)}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(put, name):
    read = read_vectors(put(name, VECTORS[name]))
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.from_numpy(X))
    assert torch.equal(read_vectors(str(put(name, VECTORS[name]))), read)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours(put, name):
    read = read_neighbours(put(name, NEIGHBOURS[name]))
    assert read.dtype == torch.int64
    assert read.tolist() == TRUE.tolist()


def test_distances_behind_neighbours_are_not_read(put):
    data = bin_(TRUE) + np.full(TRUE.shape, np.nan, np.float32).tobytes()
    assert read_neighbours(put("t.ibin", data)).tolist() == TRUE.tolist()


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", "<f2"])
def test_other_floats(put, dtype):
    read = read_vectors(put("x.npy", npy(X.astype(dtype))))
    assert read.dtype == (torch.float16 if "2" in dtype else torch.float32)
    assert torch.equal(read, torch.from_numpy(X).to(read.dtype))


def test_columns_first(put):
    assert torch.equal(read_vectors(put("x.npy", npy(np.asfortranarray(X)))), torch.from_numpy(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_safetensors_of_any_float(put, dtype):
    x = torch.from_numpy(X).to(dtype)
    path = put("x.safetensors", tensors(x=x, y=torch.zeros(2, 2, dtype=torch.int32)))
    assert torch.equal(read_vectors(path, "x"), x.float() if dtype == torch.float64 else x)


def test_vectors_stay_in_their_file(put):
    """What is written into it shows: nothing was copied."""
    for name, data in VECTORS.items():
        if name.endswith("safetensors"):
            continue  # its own library maps it, or does not
        path = put(name, data)
        read = read_vectors(path)
        with path.open("r+b") as file:
            file.seek(-4, 2)
            file.write(struct.pack("<f", 42.0))
        assert read[-1, -1] == 42, name


def test_what_is_read_can_be_written_to_and_the_file_stays(put):
    path = put("x.npy", VECTORS["x.npy"])
    read_vectors(path)[0, 0] = 9
    assert path.read_bytes() == VECTORS["x.npy"]


def test_ids(put):
    ids = np.array([5, 0, 2**63 - 1], np.uint64)
    assert read_ids(put("i.npy", npy(ids))).tolist() == ids.tolist()


@pytest.mark.parametrize("name", [*VECTORS, *NEIGHBOURS])
def test_truncated_or_with_more_behind(put, name):
    """At every length; a file of rows alone may end after any of them."""
    data = (VECTORS | NEIGHBOURS)[name]
    read = read_vectors if name in VECTORS else read_neighbours
    row = {"x.fvecs": 24, "t.ivecs": 16}.get(name)
    for length in range(len(data)):
        path = put(name, data[:length])
        if row and length and length % row == 0:
            assert len(read(path)) == length // row
            continue
        with pytest.raises(ValueError, match=rf"^tamis.{read.__name__}: path: expected .*, got .*{name}"):
            read(path)
    with pytest.raises(ValueError, match="path: expected"):
        read(put(name, data + b"\0"))


@pytest.mark.parametrize("name", [*VECTORS, *NEIGHBOURS])
def test_a_changed_byte_is_refused_or_gives_numbers(put, name):
    """It may be a number's; it never gives another shape of the same file's end, and never crashes."""
    data = (VECTORS | NEIGHBOURS)[name]
    read = read_vectors if name in VECTORS else read_neighbours
    g, words = np.random.default_rng(1), []
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << int(g.integers(8))
        try:
            got = read(put(name, bytes(changed)))
        except ValueError as error:
            words.append(str(error))
        else:
            assert got.numel() in (35, 21)
    assert all(text.startswith(f"tamis.{read.__name__}: path: expected") for text in words)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.txt", b"", "expected a file that ends in .npy, .fvecs, .fbin, .safetensors, got"),
        ("x", VECTORS["x.npy"], "expected a file that ends in"),
        ("x.npy", b"", "expected a whole .npy file of numbers, got "),
        ("x.npy", b"hello, I am text", "expected a whole .npy file of numbers, got "),
        ("x.npy", pickle.dumps(X), "expected a whole .npy file of numbers, got "),
        ("x.npy", npy(X[0]), r"expected \[n, d\], at least one vector, got \[5\]: "),
        ("x.npy", npy(X[:0]), "expected "),
        ("x.npy", npy(X[:, :0]), "expected "),
        ("x.npy", npy(X.astype(np.int32)), "expected floats, got int32: "),
        ("x.npy", npy(X.astype(np.complex64)), "expected floats, got complex64: "),
        ("x.npy", npy(X.astype(np.longdouble)), "expected floats, got "),
        ("x.npy", npy(with_(np.nan, 4, 2)), "expected finite numbers, got NaN or inf in row 4: "),
        ("x.fbin", bin_(with_(np.inf, 6, 0)), "expected finite numbers, got NaN or inf in row 6: "),
        ("x.fvecs", vecs(with_(-np.inf, 0, 4)), "expected finite numbers, got NaN or inf in row 0: "),
        ("x.safetensors", tensors(x=X * np.float32("nan")), "expected finite numbers, got NaN or inf in row 0: "),
        ("x.npy", npy(np.float64([[1e300]])), "expected finite numbers, got NaN or inf in row 0: "),
        ("x.fvecs", b"", "expected a row's length of 1 or more first, got an empty file: "),
        ("x.fvecs", vecs(X)[:-1], "expected rows of 24 bytes, got 167 bytes, 23 too many: "),
        ("x.fvecs", struct.pack("<i", -1) * 4, "expected a row's length of 1 or more first, got -1: "),
        ("x.fvecs", vecs(X[:2]) + vecs(X[:4, :2]), "expected rows of length 5, as the first, got 2 in row 2: "),
        ("x.fbin", b"", r"expected a number of rows and one of columns, 1 or more, first, got \[\]: "),
        ("x.fbin", bin_(X)[:-4], r"expected 148 bytes for \[7, 5\], got 144 bytes: "),
        ("x.fbin", struct.pack("<2i", 0, 5), ".* first, got "),
        ("x.fbin", struct.pack("<2i", 2**31 - 1, 2**31 - 1), ".* got 8 bytes: "),
        ("x.safetensors", b"", "expected a whole .safetensors file, got "),
        ("x.safetensors", tensors(a=X, b=X + 1), "expected one tensor, or a key, got 2 tensors: a, b: "),
        ("x.safetensors", tensors(), "expected one tensor, or a key, got 0 tensors: "),
        ("x.safetensors", tensors(x=torch.zeros(3, 2, dtype=torch.int8)), "expected floats, got torch.int8: "),
        ("x.safetensors", tensors(x=torch.zeros(3)), r"expected \[n, d\], at least one vector, got \[3\]: "),
    ],
)
def test_refused_vectors(put, name, data, words):
    with pytest.raises(ValueError, match=rf"^tamis.read_vectors: path: {words}"):
        read_vectors(put(name, data))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.fvecs", vecs(X), "expected a file that ends in .npy, .ivecs, .ibin, got"),
        ("t.npy", npy(X), "expected integers, got float32: "),
        ("t.npy", npy(TRUE[0]), r"expected \[q, k\], at least one neighbour, got \[3\]: "),
        ("t.npy", npy(TRUE - 1), r"expected integers from 0 to 2\^63 - 1, got -1: "),
        ("t.npy", npy(np.full((1, 1), 2**63, np.uint64)), r"expected integers from 0 to 2\^63 - 1, got 9223"),
        ("t.ibin", bin_(TRUE)[:-4], r"expected 92 or 176 bytes for \[7, 3\], got 88 bytes: "),
        ("t.ivecs", vecs(TRUE - 1), "expected integers from 0"),
    ],
)
def test_refused_neighbours(put, name, data, words):
    with pytest.raises(ValueError, match=rf"^tamis.read_neighbours: path: {words}"):
        read_neighbours(put(name, data))


def test_refused_ids(put):
    for data, words in (
        (npy(TRUE), r"expected \[n\], at least one id, got \[7, 3\]"),
        (npy(X[0]), "expected integers, got float32"),
    ):
        with pytest.raises(ValueError, match=rf"^tamis.read_ids: path: {words}"):
            read_ids(put("i.npy", data))


def test_pickles_are_never_run(put):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    path = put("x.npy", npy(X))
    np.save(path, np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="expected a whole .npy file of numbers, got "):
        read_vectors(path)


def test_an_archive_by_another_name(put):
    buffer = io.BytesIO()
    np.savez(buffer, x=X)
    with pytest.raises(ValueError, match="expected a .npy file, got another kind of file"):
        read_vectors(put("x.npy", buffer.getvalue()))


def test_missing(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    for name in ("none.npy", "folder.npy"):
        with pytest.raises(FileNotFoundError, match=r"^tamis.read_vectors: path: expected a file, got .*npy"):
            read_vectors(tmp_path / name)


def test_keys(tmp_path):
    save_file({"a": torch.ones(2, 2), "b": torch.zeros(3, 2)}, tmp_path / "x.safetensors")
    assert len(read_vectors(tmp_path / "x.safetensors", "b")) == 3
    with pytest.raises(ValueError, match=r"^tamis.read_vectors: key: expected one of a, b, got c"):
        read_vectors(tmp_path / "x.safetensors", "c")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match=r"^tamis.read_vectors: key: expected none"):
        read_vectors(tmp_path / "x.npy", "a")


def test_pieces(put, monkeypatch):
    """Looked at piece by piece, rows keep their number."""
    monkeypatch.setattr("tamis.ann.files._CHUNK", 11)
    bad = X.copy()
    bad[5, 1] = np.nan
    for name, data in (("x.npy", npy(bad)), ("x.fvecs", vecs(bad)), ("x.fbin", bin_(bad))):
        with pytest.raises(ValueError, match="NaN or inf in row 5"):
            read_vectors(put(name, data))
    ragged = bytearray(vecs(X))
    ragged[24 * 5] = 4
    with pytest.raises(ValueError, match="got 4 in row 5"):
        read_vectors(put("x.fvecs", bytes(ragged)))
