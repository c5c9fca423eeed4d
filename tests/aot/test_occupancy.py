"""Occupancy against numbers worked out by hand and against NVIDIA's own calculation."""

import importlib.util
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tamis.aot import cuda, entries, occupancy
from tamis.aot.inventory import kernels_folder


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks", "percent"),
    [
        (80, 256, 32, 0, 8, 100.0),  # 64 warps by their registers too: 2048 threads of 32
        (80, 256, 33, 0, 6, 75.0),  # 40 registers: 1280 a warp, 12 in each of 4 parts of 16384, 48 warps
        (80, 128, 255, 0, 2, 12.5),  # 8192 a warp, 2 in each part
        (80, 32, 16, 0, 32, 50.0),  # 32 blocks of one warp at most
        (80, 1024, 64, 0, 1, 50.0),  # 8 warps a part
        (80, 128, 32, 40 << 10, 4, 25.0),  # 41 KiB with the driver's, in 164
        (90, 512, 32, 8408, 4, 100.0),  # topk_row_kernel
        (90, 128, 168, 0, 3, 18.8),  # 5376 a warp, 3 in each part: 12 warps
        (90, 128, 32, 113 << 10, 2, 12.5),  # 114 KiB, twice in 228
        (100, 512, 40, 8408, 3, 75.0),
        (120, 512, 40, 8408, 3, 100.0),  # of 48 warps
        (120, 32, 16, 0, 24, 50.0),
        (120, 256, 32, 49 << 10, 2, 33.3),
        (120, 1024, 32, 0, 1, 66.7),
    ],
)
def test_by_hand(arch, threads, registers, shared, blocks, percent):
    assert occupancy.blocks(arch, threads, registers, shared) == blocks
    assert occupancy.percent(arch, threads, registers, shared) == percent


NVIDIA = """
#include <stdio.h>
#include "cuda_occupancy.h"
int main() {
  int arch, warps, threads, registers, shared, per_sm;
  while (scanf("%d %d %d %d %d %d", &arch, &warps, &per_sm, &threads, &registers, &shared) == 6) {
    cudaOccDeviceProp device;
    device.computeMajor = arch / 10, device.computeMinor = arch % 10;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = 32 * warps;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32, device.numSms = 1;
    device.sharedMemPerBlock = 49152, device.sharedMemPerMultiprocessor = per_sm;
    device.sharedMemPerBlockOptin = per_sm - 1024, device.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = per_sm - 1024, kernel.numBlockBarriers = 1, kernel.virtualResourceCount = 0;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared)) return 1;
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def header():
    found = importlib.util.find_spec("triton")
    places = [Path(found.submodule_search_locations[0]) / "backends" / "nvidia"] if found else []
    places += [Path(cuda.nvcc()).resolve().parents[1]] if cuda.nvcc() else []
    return next((place / "include" for place in places if (place / "include" / "cuda_occupancy.h").exists()), None)


@pytest.mark.skipif(shutil.which("g++") is None or header() is None, reason="needs g++ and cuda_occupancy.h")
def test_nvidia_says_the_same(tmp_path):
    (tmp_path / "occupancy.cpp").write_text(NVIDIA)
    program = tmp_path / "occupancy"
    subprocess.run(["g++", "-w", f"-I{header()}", tmp_path / "occupancy.cpp", "-o", program], check=True)
    cases = [
        case
        for case in itertools.product(
            occupancy.LIMITS,
            (32, 64, 96, 128, 256, 512, 1024),
            range(8, 256, 3),
            (0, 1, 1056, 8408, 17408, 49152, 90000),
        )
        if case[1] * case[2] <= 65536
    ]
    lines = "\n".join(
        f"{a} {occupancy.LIMITS[a].warps} {occupancy.LIMITS[a].shared} {t} {r} {s}" for a, t, r, s in cases
    )
    said = subprocess.run([program], input=lines, check=True, capture_output=True, text=True).stdout.split()
    assert len(said) == len(cases) > 10_000
    for case, blocks in zip(cases, said, strict=True):
        assert occupancy.blocks(*case) == int(blocks), case


def test_declared_blocks_are_those_launched():
    """What a CudaVariant says, where its family's launches and headers say it."""
    repository = kernels_folder().resolve().parent
    for entry in entries():
        if entry.backend == "cuda":
            kernel, header = entry.variant.kernel, repository / "kernels" / entry.family / entry.variant.header
            files = [path.read_text() for path in repository.glob(f"csrc/{entry.family}*.cu")]
            if not files:
                pytest.skip("not a checkout")
            (launches,) = (text for text in files if re.search(rf"cuda::{kernel}\b", text))
            bound = re.search(rf"__launch_bounds__\((\w+)[^)]*\)\s+{kernel}\b", header.read_text())
            name = bound[1] if bound else "kThreads"
            texts = launches + header.read_text() + (repository / "kernels/common/block.cuh").read_text()
            said = re.search(rf"constexpr (?:int|unsigned) {name} = (\d+)", texts)
            assert said and entry.variant.threads == int(said[1]), entry.file
