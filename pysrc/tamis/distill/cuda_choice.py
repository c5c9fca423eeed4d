"""Whether Triton or CUDA C++ serves distill_loss on a CUDA device. A rule of numbers alone: no GPU is needed to ask it.

Both kernels write the gradient once and read a row of both logits for its sums. What needs the sums reads it again: the
gradient, and a divergence that compares probabilities. Triton's kernel does so from L2 where the rows of all its
programs fit there together,

    min(rows, 4 * multiprocessors) * models * classes * bytes an element <= bytes of L2

and from memory where they do not: up to five streams instead of three, or seven under jsd and total variation. (The
gradient's own lines, which take from L2 too, are not counted.) The kernel in CUDA C++ keeps a block's rows in shared
memory, so it reads them once whatever L2 holds, but there they must fit. Where it buys nothing Triton keeps the work.
This counts bytes: no GPU has timed either.
"""

from typing import NamedTuple

import torch

from ..common.backend import Choice
from ..common.checks import fail
from ..common.cuda import PROGRAMS

TRITON, CUDA = "distill_loss_kernel", "distill_rows_kernel"
COMPARES = ("jsd", "total_variation")
ALONE = "alone"  # beside reference.DIVERGENCES: no teacher
STATIC = 576  # bytes: the most that distill_rows_kernel has beside its rows
_SHARED = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 1): 227, (10, 3): 227, (11, 0): 227}  # KiB a block
_LEAST = 99  # KiB, of every other capability from 8.0 on


class Device(NamedTuple):
    capability: tuple[int, int]
    multiprocessors: int
    shared: int  # bytes that a block may ask for
    l2: int  # bytes

    @property
    def name(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


def shared_of(capability: tuple[int, int]) -> int:
    """Bytes that a block may ask for; the CUDA programming guide's."""
    return _SHARED.get(capability, _LEAST if capability >= (8, 0) else 0) << 10


def device_of(device: torch.device) -> Device:
    found = torch.cuda.get_device_properties(device)
    capability = (found.major, found.minor)
    return Device(capability, found.multi_processor_count, shared_of(capability), found.L2_cache_size)


def kept_bytes(classes: int, element: int, models: int) -> int:
    """Shared memory that a block needs: each model's row in slices of 16 bytes, wherever it begins."""
    lanes = 16 // element
    return models * 16 * ((classes + 2 * (lanes - 1)) // lanes) + STATIC


def chosen(
    device: Device,
    student: torch.dtype,
    teacher: torch.dtype,
    rows: int,
    classes: int,
    divergence: str,
    *,
    gradient: bool,
    forced: str = "",
    built: bool = True,
    debug: bool = False,
) -> Choice:
    """Triton or cuda. divergence: one of reference.DIVERGENCES, or ALONE. forced: "impl=cuda" and the like, for who
    named a backend. built: whether the CUDA library is there. debug: whether kernels are to assert.

    Raises:
        ValueError: cuda is named, and its kernel cannot serve these rows.
    """
    models = 1 if divergence == ALONE else 2
    many = "" if models == 1 else f"{models} x "
    row = classes * student.itemsize
    sizes = f"rows of {many}{_size(row)}"
    no = _refusal(device, student, teacher if models == 2 else student, classes, models, built, sizes)
    name, _, wanted = forced.partition("=")
    if wanted == "cuda":
        if no:
            fail("distill_loss", name, "rows that the CUDA C++ kernel takes for cuda", no)
        return Choice("cuda", CUDA, forced)
    if wanted == "triton":
        return Choice("triton", TRITON, forced)
    if no:
        return Choice("triton", TRITON, no)
    if debug:
        return Choice("triton", TRITON, "TAMIS_DEBUG=1: the assertions are Triton's")
    if not gradient and divergence not in COMPARES:
        return Choice("triton", TRITON, f"no gradient: {sizes} are read once")
    together = min(rows, PROGRAMS * device.multiprocessors) * models * row
    held = f"{_size(together)} of rows at once, L2 of {_size(device.l2)}"
    if together <= device.l2:
        return Choice("triton", TRITON, f"{held}: read again from there")
    return Choice("cuda", CUDA, f"{held}; {sizes} fit into the {device.shared >> 10} KiB of {device.name}: read once")


def _refusal(
    device: Device, student: torch.dtype, teacher: torch.dtype, classes: int, models: int, built: bool, sizes: str
) -> str:
    """Why the CUDA C++ kernel cannot serve, if it cannot."""
    if not built:
        return "no CUDA library for this device: no nvcc was found, or it is before sm_80"
    if student == torch.float64:
        return "float64"
    if student != teacher:
        return f"logits of two dtypes, {str(student)[6:]} and {str(teacher)[6:]}"
    if kept_bytes(classes, student.itemsize, models) > device.shared:
        return f"{sizes}, more than a block of {device.name} holds"
    return ""


def _size(count: int) -> str:
    for unit, bytes_ in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_:
            return f"{count / bytes_:.3g} {unit}"
    return f"{count} bytes"
