"""Quantized search for nearest neighbours."""

from .assign import Assignment, kmeans_assign
from .encode import anisotropic_eta, pq_decode, pq_encode
from .index import Index
from .ops import SearchResult, ivf_search, pack_codes, pq_lut, pq_scan, rank_of, rerank
from .spec import Spec, Tuning
from .train import fit_order_weight, kmeans, train_codebooks

__all__ = [
    "Assignment",
    "Index",
    "SearchResult",
    "Spec",
    "Tuning",
    "anisotropic_eta",
    "fit_order_weight",
    "ivf_search",
    "kmeans",
    "kmeans_assign",
    "pack_codes",
    "pq_decode",
    "pq_encode",
    "pq_lut",
    "pq_scan",
    "rank_of",
    "rerank",
    "train_codebooks",
]
