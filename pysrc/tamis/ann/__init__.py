"""Quantized search for nearest neighbours."""

from .index import Index
from .ops import SearchResult, pack_codes, pq_lut, pq_scan, rerank
from .spec import Spec, Tuning

__all__ = ["Index", "SearchResult", "Spec", "Tuning", "pack_codes", "pq_lut", "pq_scan", "rerank"]
