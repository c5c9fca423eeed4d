"""Quantized nearest-neighbour search: what builds an index."""

from .encode import anisotropic_eta, pq_decode, pq_encode
from .kmeans import Assignment, kmeans_assign

__all__ = ["Assignment", "anisotropic_eta", "kmeans_assign", "pq_decode", "pq_encode"]
