"""Compiles every GPU kernel without a GPU, and holds each against its budget."""

from . import budgets, cuda, inventory
from .budgets import violations
from .build import Kernel, build, cache_folder
from .inventory import Entry, entries, missing

__all__ = [
    "Entry",
    "Kernel",
    "budgets",
    "build",
    "cache_folder",
    "cuda",
    "entries",
    "inventory",
    "missing",
    "violations",
]
