"""SelectiveClassifier where its inputs are not plain numbers, or far out."""

import numpy as np
import pytest
from tamis.sampling import SelectiveClassifier

pytest.importorskip("sklearn")
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score


def test_score_counts_an_abstention_as_an_error():
    x = np.random.default_rng(0).standard_normal((300, 2))
    names = np.where(x[:, 0] > 0, "a", "b")
    model = SelectiveClassifier(budget=0.2).fit(x, names)
    answers = model.predict(x)
    assert model.score(x, names) == np.mean([a == b for a, b in zip(answers, names, strict=True)])
    assert 0.7 < model.score(x, names) < 0.85
    assert cross_val_score(SelectiveClassifier(budget=0.2), x, names, error_score="raise").min() > 0.5


def test_a_score_that_underflows_far_out_is_rejected():
    x = np.random.default_rng(0).standard_normal((300, 2))

    def density(points):
        return np.exp(-0.5 * (points**2).sum(1))

    model = SelectiveClassifier(budget=0.1, inlier_share=0.5, inlier_score=density).fit(x, (x[:, 0] > 0).astype(int))
    for far in (5, 37, 38.3, 40, 1e3):
        assert model.predict([[0.01, far], [2.0, 0.0]])[0] == -1
        assert np.isfinite(model.decision_function([[0.01, far]])).all()
    with pytest.raises(ValueError, match="inlier_score: expected positive numbers for X, which are inliers, got 0.0"):
        SelectiveClassifier(inlier_share=0.5, inlier_score=density).fit(x * 100, (x[:, 0] > 0).astype(int))


def test_columns_of_wild_points_are_those_of_the_inliers():
    pandas = pytest.importorskip("pandas")
    x = np.random.default_rng(0).standard_normal((100, 2))
    frame, y = pandas.DataFrame(x, columns=["a", "b"]), (x[:, 0] > 0).astype(int)
    model = SelectiveClassifier(RandomForestClassifier(10, random_state=0), budget=0.1)
    for name in ("wild", "strict_inliers"):
        with pytest.raises(ValueError, match=f"{name}: expected the columns of X, .'a', 'b'., got .'b', 'a'."):
            model.fit(frame, y, **({"wild": frame} | {name: frame[["b", "a"]]}))


def test_parameters_set_after_a_fit_wait_for_the_next_one():
    x = np.random.default_rng(0).standard_normal((300, 2))
    model = SelectiveClassifier(budget=0.2, inlier_share=0.5, inlier_score=lambda points: np.exp(points[:, 1]))
    model.fit(x, (x[:, 0] > 0).astype(int))
    before = model.decision_function(x)
    np.testing.assert_array_equal(model.set_params(outlier_cost=0.1).decision_function(x), before)
