"""Every data set that tamis reads, declared in one place: what it is, whose it is, where it comes from, its checksum.

Nothing needs a hub. A loader takes a local path first, then what is installed, then, only with the user's word, a
download; offline and missing is an error that says what to install. No data is committed.
"""

import hashlib
import os
import sysconfig
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

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
        sha256: of the bytes of the files one after the other; None only where `unpinned` says why.
        url: where a download comes from; only pinned data can be downloaded.
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
    url: str | None = None

    def __post_init__(self) -> None:
        if self.sha256 is None and (not self.unpinned or self.url):
            raise ValueError(f"tamis.data: {self.name}: expected a sha256, or a reason for none and no url")

    def load(self, path: str | os.PathLike[str] | None = None, *, download: bool = False) -> T:
        """The data: from `path`, else as installed, else downloaded before, else (`download=True`) downloaded now.

        Raises:
            MissingData: none of these; says what to install.
            ChecksumMismatch: files of other content than the declared one.
        """
        if path is not None:
            files: Sequence[Path] = [Path(path)]
            if not files[0].is_file():
                raise MissingData(f"tamis.data: {self.name}: no file {path}")
        else:
            files = self.find() or self._downloaded(download)
        if self.sha256 is not None:
            found = sha256(files)
            if found != self.sha256:
                where = files[0] if len(files) == 1 else f"{len(files)} files from {files[0]}"
                raise ChecksumMismatch(f"tamis.data: {self.name}: {where}: expected sha256 {self.sha256}, got {found}")
        return self.read(files)

    def _downloaded(self, download: bool) -> list[Path]:
        if self.url is None:
            raise MissingData(f"tamis.data: {self.name} is not installed: {self.install}")
        kept = cache() / self.name / self.url.rsplit("/", 1)[1]
        if not kept.is_file():
            if not download:
                raise MissingData(
                    f"tamis.data: {self.name} is not installed: {self.install}, or allow a download from {self.url}"
                )
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
            try:
                urllib.request.urlretrieve(self.url, part)
                found = sha256([part])
                if found != self.sha256:  # before the rename: a wrong file is never kept
                    raise ChecksumMismatch(
                        f"tamis.data: {self.name}: {self.url}: expected sha256 {self.sha256}, got {found}"
                    )
                part.replace(kept)
            except OSError as error:
                raise MissingData(
                    f"tamis.data: {self.name}: no download from {self.url} ({error}): {self.install}"
                ) from error
            finally:
                part.unlink(missing_ok=True)
        return [kept]


def cache() -> Path:
    """Where downloads are kept: TAMIS_DATA, else the user's cache folder."""
    return Path(os.environ.get("TAMIS_DATA") or Path.home() / ".cache" / "tamis")


def sha256(files: Sequence[Path]) -> str:
    """Of the bytes of the files one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# Tests, vendored code and compilers: a third of the time to read, little prose.
_NO_PROSE = {"test", "tests", "testing", "_inductor", "_dynamo", "idlelib", "lib2to3", "ensurepip", "__pycache__"}


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _NO_PROSE - {"site-packages", "dist-packages"})
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".py"))


def _find_python_docs() -> list[Path]:
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    for package in ("torch", "numpy"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            roots.append(Path(spec.origin).parent)
    return [file for root in roots for file in _python_files(root)]


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

DATASETS: dict[str, Dataset[str]] = {dataset.name: dataset for dataset in (PYTHON_DOCS,)}
