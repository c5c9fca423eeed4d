"""Quantized search for nearest neighbours."""

from .encode import anisotropic_eta, pq_decode, pq_encode
from .index import Index
from .kmeans import Assignment, kmeans_assign
from .ops import SearchResult, ivf_search, pack_codes, pq_lut, pq_scan, rerank
from .spec import Spec, Tuning

__all__ = [
    "Assignment",
    "Index",
    "SearchResult",
    "Spec",
    "Tuning",
    "anisotropic_eta",
    "ivf_search",
    "kmeans_assign",
    "pack_codes",
    "pq_decode",
    "pq_encode",
    "pq_lut",
    "pq_scan",
    "rerank",
]
