"""The demonstration's search, tiny: it finds what comparing with all finds, and where nothing is installed says so."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console
from tamis.cli import demo
from tamis.pipelines.data import MissingData
from tamis.pipelines.demo_search import search

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = [f"{kind}{i}" for i in range(200) for kind in ("beast", "day", "town")]
MIDDLES = np.random.default_rng(0).normal(size=(3, 8))
VECTORS = (np.tile(MIDDLES, (200, 1)) + 0.1 * np.random.default_rng(1).normal(size=(600, 8))).astype(np.float32)


def test_nearest_are_of_a_kind():
    found = search(WORDS, VECTORS, shown=("beast3", "town0", "nowhere"), queries=250, k=5)
    assert (found.words, found.d, found.queries, found.k) == (600, 8, 250, 5)
    assert list(found.nearest) == ["beast3", "town0"]
    for word, others in found.nearest.items():
        assert len(others) == 5 and word not in others
        assert all(other.rstrip("0123456789") == word.rstrip("0123456789") for other in others)
    assert 0.5 < found.recall <= 1
    assert found.exact_us > 0 and found.index_us > 0
    json.dumps(asdict(found))


def test_recall_leaves_the_word_itself_out(monkeypatch):
    """An index that finds nobody but the word finds none of its neighbours."""

    class Alone:
        d, spec = 8, ""

        def search(self, queries, k):
            import torch
            from tamis.ann import SearchResult

            own = (torch.nn.functional.normalize(torch.tensor(VECTORS)) @ queries.T).argmax(0)
            return SearchResult(own, torch.nn.functional.pad(own.unsqueeze(-1), (0, k - 1), value=-1))

    monkeypatch.setattr("tamis.pipelines.demo_search.Index.build", lambda *_, **__: Alone())
    assert search(WORDS, VECTORS, shown=(), k=5).recall == 0


def test_refused():
    for words, vectors in ((WORDS[:5], VECTORS), (WORDS[:10], VECTORS[:10]), (WORDS, VECTORS[0])):
        with pytest.raises(ValueError, match=r"^tamis.demo: vectors: expected \[\d+, d\], more than 10, got"):
            search(words, vectors)


def test_shown_or_left_out(monkeypatch, capsys):
    monkeypatch.setattr("tamis.pipelines.data.glove", lambda: ([*WORDS[:-1], "frog"], VECTORS))
    found = demo._search(Console(width=150), seed=0)
    said = capsys.readouterr().out
    assert f"finds {found.recall:.1%} of them in" in said
    assert f"frog: {', '.join(found.nearest['frog'])}\n" in said

    def missing():
        raise MissingData("tamis.data: glove is not installed: pip install 'tamis[demo]'")

    monkeypatch.setattr("tamis.pipelines.data.glove", missing)
    assert demo._search(Console(width=150), seed=0) is None
    assert (
        capsys.readouterr().out == "\nsearch left out: tamis.data: glove is not installed: pip install 'tamis[demo]'\n"
    )
