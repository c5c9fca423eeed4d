"""Kernels that compute only what matters: `torch.ops.tamis.*`, functions and modules over them."""

import logging
from pathlib import Path

import torch

from ._version import __version__

logging.getLogger("tamis").addHandler(logging.NullHandler())


def _load() -> None:
    libraries = sorted(Path(__file__).parent.glob("_ops*.so"))  # _ops.so before _ops_cuda.so, which extends it
    if not libraries:
        raise ImportError("tamis: its libraries are not built; install it with `pip install --no-build-isolation .`")
    for library in libraries:
        torch.ops.load_library(library)


_load()

from . import ann, distill, sampling, sparse_mlp  # noqa: E402  (registrations need the schemas)
from .common.explain import explain  # noqa: E402

__all__ = ["__version__", "ann", "distill", "explain", "sampling", "sparse_mlp"]
