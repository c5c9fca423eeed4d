"""Nothing here imports torch or tamis before a test asks for it: tests/cuda_emulator runs where neither is."""

import os
from functools import cache

import pytest
from hypothesis import settings

settings.register_profile("tamis", deadline=None, max_examples=60, derandomize=True, print_blob=True)
settings.load_profile("tamis")


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """Deterministic mode fills fresh memory with NaN: an element never written shows."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def one_thread():
    """On a loaded machine the threads of small steps would mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def isas():
    """Every instruction set of this machine; "wide" is v4's 16 lanes in v3's instructions, for machines without v4."""
    import tamis  # noqa: F401
    import torch

    if os.environ.get("TRITON_INTERPRET") == "1":
        return ["triton"]
    found, before = [], torch.ops.tamis._isa()
    for isa in ("v2", "v3", "v4", "v4x", "neon", "wide"):
        try:
            torch.ops.tamis._use_isa(isa)
        except RuntimeError:
            continue
        found.append(isa)
    torch.ops.tamis._use_isa(before)
    return found


def pytest_generate_tests(metafunc):
    own = any("isa" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "isa" in metafunc.fixturenames and not own:
        metafunc.parametrize("isa", isas(), indirect=True, scope="module")


@pytest.fixture(scope="module")
def isa(request):
    if request.param == "triton":
        yield "triton"
        return
    import torch

    before = torch.ops.tamis._use_isa(request.param)
    yield request.param
    torch.ops.tamis._use_isa(before)
