"""An index in a file: safetensors, whose header says what it is and sums up its bytes."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..common.checks import check_choice, check_number, fail
from .spec import METRICS, REORDERS, Spec, Tuning

if TYPE_CHECKING:
    from .index import Index

VERSION = 2  # of the layout; a file says which it needs
KEY = "tamis.ann.Index"
_CHUNK = 1 << 24


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """Of all bytes, and of what is said about them."""
    sums = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        sums.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
        for piece in flat.split(_CHUNK):
            sums.update(memoryview(piece.numpy()))
    return sums.hexdigest()


def describe(index: "Index") -> dict[str, Any]:
    """What an index is beside its buffers."""
    return {
        "version": VERSION, "d": index.d, "metric": index.metric, "spec": index.spec,
        "tuning": {"leaves": index.tuning.leaves, "rerank": index.tuning.rerank, "lookup": index.tuning.lookup},
        "centroid_scale": index.centroid_scale, "byte_scale": index.byte_scale,
    }  # fmt: skip


def described(about: dict[str, Any]) -> dict[str, Any]:
    """The attributes, by name."""
    own = {name: about[name] for name in ("d", "metric", "spec", "centroid_scale", "byte_scale")}
    return own | {"tuning": Tuning(**about["tuning"])}


def pack(about: dict[str, Any]) -> Tensor:
    """Bytes: what any format of state dicts can hold."""
    return torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)


def unpack(state: Any) -> dict[str, Any]:
    """Raises ValueError where pack did not make it, or a newer tamis did."""
    fn, name = "Index.load_state_dict", "_extra_state"
    try:
        about = json.loads(state.numpy(force=True).tobytes())
        version = int(about["version"])
        if version <= VERSION:
            return described(about)
    except (AttributeError, ValueError, KeyError, TypeError):
        fail(fn, name, "an index's", repr(state))
    fail(fn, name, f"layout {VERSION} or before", f"{version}: a newer tamis wrote it")


def save(index: "Index", path: str | os.PathLike[str]) -> None:
    """All or nothing: a file that was there stays until the new one is whole."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in index.named_buffers() if t is not None}
    about = describe(index)
    about["checksum"] = _digest(tensors, about)
    place = Path(path).resolve()
    if place.exists() and not place.is_file():
        fail("Index.save", "path", "a file", f"{place}, a folder or a device")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"tamis.Index.save: path: expected a folder that exists, got {place.parent}")
    part = place.with_name(f"tamis-{uuid4().hex}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # as the user's files are; safetensors makes one for its owner alone
        save_file(tensors, part, {KEY: json.dumps(about)})
        part.chmod(mode)
        part.replace(place)
    except SafetensorError as error:
        raise OSError(f"tamis.Index.save: path: expected room to write {place}, got {error}") from error
    finally:
        part.unlink(missing_ok=True)


# dtype, dimensions, and what of the spec or the metric it comes with.
_PARTS: dict[str, tuple[torch.dtype, int, str]] = {
    "centroids": (torch.uint8, 3, ""), "order_bias": (torch.float32, 1, ""), "score_bias": (torch.float32, 1, ""),
    "start": (torch.int64, 1, ""), "block": (torch.int64, 1, ""), "codebooks": (torch.float32, 3, ""),
    "codes": (torch.uint8, 1, ""), "rows": (torch.int64, 1, ""), "bytes": (torch.uint8, 2, "int8"),
    "constants": (torch.float32, 2, "l2"), "half_norms": (torch.float32, 1, "l2"), "center": (torch.float32, 1, "l2"),
}  # fmt: skip


def _check_parts(tensors: dict[str, Tensor], own: dict[str, Any]) -> None:
    """Raises ValueError where one is missing, of another dtype, or stands for nothing."""
    metric, reorder = own["metric"], REORDERS[Spec.parse(own["spec"]).reorder]
    check_choice("Index.load", "metric", metric, METRICS)
    for name in ("d", "centroid_scale", "byte_scale"):
        check_number("Index.load", name, own[name], "above 0, finite", lambda x: 0 < x < float("inf"))
    parts = dict(_PARTS)
    if reorder and reorder[-1] != "int8":
        parts["exact"] = torch.bfloat16 if reorder[-1] == "bf16" else torch.float32, 2, ""
    if "ids" in tensors:
        parts["ids"] = torch.int64, 1, ""
    for name, (dtype, dims, of) in parts.items():
        wanted = not of or of in reorder or of == metric
        tensor = tensors.get(name)
        if not wanted and tensor is None:
            continue
        if tensor is None or tensor.dtype != dtype or tensor.dim() != dims:
            got = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            fail("Index.load", name, f"{dtype} of {dims} dimensions", got)
    if len(tensors["rows"]) != int(tensors["start"][-1]):
        fail("Index.load", "rows", f"{int(tensors['start'][-1])}, as start says", len(tensors["rows"]))


def load(path: str | os.PathLike[str], names: tuple[str, ...], mmap: bool) -> dict[str, Any]:
    """Index's arguments. With mmap the file stays where it is and pages come as they are read, unchecked."""
    fn = "Index.load"
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"tamis.{fn}: path: expected a file, got {place}")
    try:
        with safe_open(place, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a file is no dict)
    except Exception as error:  # safetensors has its own, and the operating system's
        fail(fn, "path", "an index that was saved whole", f"{place}: {error}")
    try:
        about = json.loads(text or "")
        version, checksum = int(about["version"]), str(about.pop("checksum"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        fail(fn, "path", "an index of tamis", f"{place}, which has no such header")
    if version > VERSION:
        fail(fn, "path", f"a file of layout {VERSION} or before", f"{version}: a newer tamis wrote it")
    if not mmap:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        if _digest(tensors, about) != checksum:
            fail(fn, "path", "the bytes that were saved", f"{place}, whose checksum differs")
    try:
        own = described(about)
        _check_parts(tensors, own)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fail(fn, "path", "an index that has all its parts", f"{place}: {error}")
    return {"buffers": {name: tensors.get(name) for name in names}, **own}
