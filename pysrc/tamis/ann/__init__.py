"""Quantized nearest-neighbour search: what builds an index."""

from .assign import Assignment, kmeans_assign
from .encode import anisotropic_eta, pq_decode, pq_encode
from .train import fit_order_weight, kmeans, train_codebooks

__all__ = [
    "Assignment",
    "anisotropic_eta",
    "fit_order_weight",
    "kmeans",
    "kmeans_assign",
    "pq_decode",
    "pq_encode",
    "train_codebooks",
]
