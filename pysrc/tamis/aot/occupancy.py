"""How many of a multiprocessor's warps a kernel can keep there, by what each takes: NVIDIA's calculation (its header
cuda_occupancy.h, against which tests/aot holds this), for what its launches use: all shared memory that there is."""

from typing import NamedTuple


class Multiprocessor(NamedTuple):
    """Compute capabilities, table 'Technical Specifications' of the CUDA programming guide."""

    warps: int
    blocks: int
    shared: int  # bytes


LIMITS = {
    80: Multiprocessor(64, 32, 164 << 10),
    90: Multiprocessor(64, 32, 228 << 10),
    100: Multiprocessor(64, 32, 228 << 10),
    120: Multiprocessor(48, 24, 100 << 10),
}
WARP = 32
PARTITIONS = 4  # of a multiprocessor; a warp's registers lie in one
REGISTERS = 65536 // PARTITIONS  # of a partition
REGISTER_UNIT = 256  # of a warp's
SHARED_UNIT = 128
RESERVED = 1024  # bytes of shared memory a block, by the driver


def blocks(arch: int, threads: int, registers: int, shared: int) -> int:
    """That a multiprocessor holds at a time.

    Args:
        registers: a thread.
        shared: bytes a block, without the driver's.
    """
    limit, warps = LIMITS[arch], -(-threads // WARP)
    of_warp = _up(max(registers, 1) * WARP, REGISTER_UNIT)
    return min(
        limit.blocks,
        limit.warps // warps,
        REGISTERS // of_warp * PARTITIONS // warps,
        limit.shared // _up(shared + RESERVED, SHARED_UNIT),
    )


def percent(arch: int, threads: int, registers: int, shared: int) -> float:
    """Of the warps that it could hold."""
    held = blocks(arch, threads, registers, shared) * -(-threads // WARP)
    return round(100 * held / LIMITS[arch].warps, 1)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
