"""Sentence embeddings by all-MiniLM-L6-v2, computed once and kept where downloads are."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .data import MINILM, cache

BATCH, LENGTH, WIDTH = 64, 256, 384


def embeddings(texts: Sequence[str]) -> npt.NDArray[np.float16]:
    """[n, 384], of length 1 but for rounding: the mean of the last layer over each text's first 256 tokens.

    Raises:
        MissingData: the encoder is not installed. ModuleNotFoundError: transformers is not.
    """
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    kept = cache() / MINILM.name / f"{digest}.npy"
    if not kept.is_file():
        made = _encode(texts)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{os.getpid()}.part.npy")
        np.save(part, made)
        part.replace(kept)
    rows: npt.NDArray[np.float16] = np.load(kept)
    return rows


def _encode(texts: Sequence[str]) -> npt.NDArray[np.float16]:
    """Texts of like lengths together: padding is work."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = MINILM.load()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    out = np.empty((len(texts), WIDTH), np.float16)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        inputs = tokenizer(
            [texts[i] for i in some], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        out[some] = torch.nn.functional.normalize(mean).numpy()
    return out
