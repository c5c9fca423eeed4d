"""SelectiveClassifier and its arithmetic: the rule against brute force, budgets, both ways to the ratio, bad input."""

import itertools
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from tamis.sampling import SelectiveClassifier
from tamis.sampling import selective_rules as rules
from torch import nn

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

pytestmark = pytest.mark.usefixtures("one_thread")


def least_cost(p_in, p_out, error, share, cost, mass):
    """Over every rejector that rejects at most this mass, one by one."""
    best = np.inf
    for rejected in itertools.product([False, True], repeat=len(error)):
        keep, drop = ~np.array(rejected), np.array(rejected)
        if share * p_in[drop].sum() + (1 - share) * p_out[drop].sum() <= mass + 1e-12:
            best = min(best, (1 - cost) * (p_in * error)[keep].sum() + cost * p_out[keep].sum())
    return best


def excess(p_in, p_out, error, share, cost, score):
    """Largest, over the prefixes of an order, beyond brute force."""
    order = np.argsort(-score, kind="stable")
    worst = -np.inf
    for j in range(len(order) + 1):
        drop, keep = order[:j], order[j:]
        mass = share * p_in[drop].sum() + (1 - share) * p_out[drop].sum()
        own = (1 - cost) * (p_in * error)[keep].sum() + cost * p_out[keep].sum()
        worst = max(worst, own - least_cost(p_in, p_out, error, share, cost, mass))
    return worst


def test_the_rule_is_as_good_as_brute_force():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        p_in, p_out = rng.dirichlet(np.ones(5), 2)
        error, share, cost = rng.uniform(0, 0.7, 5), rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.95)
        score = rules.scod_score(error, p_out / p_in, cost, share)
        assert excess(p_in, p_out, error, share, cost, score) < 1e-9
        wrong += excess(p_in, p_out, error, share, cost, error) > 1e-3
    assert wrong > 100  # brute force sees a rule that is not optimal


WEIGHTS = st.lists(st.sampled_from([0.01, 0.5, 1.0, 2.0, 7.0]), min_size=4, max_size=4)


@given(WEIGHTS, WEIGHTS, st.lists(st.sampled_from([0.0, 0.2, 0.21, 0.9]), min_size=4, max_size=4), st.data())
def test_the_rule_on_ties_and_ends(a, b, error, data):
    p_in, p_out, error = np.array(a) / sum(a), np.array(b) / sum(b), np.array(error)
    share, cost = data.draw(st.sampled_from([0.05, 0.5, 1.0])), data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    score = rules.scod_score(error, p_out / p_in, cost, share)
    assert excess(p_in, p_out, error, share, cost, score) < 1e-9


def test_special_cases():
    rng = np.random.default_rng(1)
    error, ratio = rng.uniform(0, 1, 100), rng.exponential(2, 100)
    np.testing.assert_array_equal(rules.scod_score(error, ratio, 0.0, 1.0), error)
    for share in (0.1, 0.5, 0.99):
        by_ratio = rules.scod_score(error, ratio, 1.0, share)[np.argsort(ratio)]
        assert (np.diff(by_ratio) > 0).all()
    published = [rules.published_rejects(error, ratio, price, 0.75, 0.5) for price in (0.1, 0.3, 0.6, 0.9, 1.4)]
    exact = [rules.scod_score(error, ratio, 0.75, 0.5) > price for price in (0.1, 0.3, 0.6, 0.9, 1.4)]
    np.testing.assert_array_equal(published, exact)  # the same at pi = 1/2, and only there
    assert (
        rules.published_rejects(error, ratio, 0.3, 0.75, 0.8) != (rules.scod_score(error, ratio, 0.75, 0.8) > 0.3)
    ).any()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_area_is_a_plain_loop(points):
    score, error, wrong, outlier = (np.array(column) for column in zip(*points, strict=True))
    loss = rules.losses(wrong, outlier, 0.75)
    order = rules.accept_order(score.astype(float), error.astype(float))
    assert order.tolist() == sorted(range(len(points)), key=lambda i: (score[i], error[i], i))
    total, area = 0.0, 0.0
    for k, i in enumerate(order, 1):
        total += 0.75 if outlier[i] else 0.25 * wrong[i]
        area += total / k
    assert rules.auc_rc(order, loss) == pytest.approx(area / len(points), rel=1e-12)
    assert np.isnan(rules.auc_rc(order[:0], loss[:0]))
    assert rules.auc_rc(rules.accept_order(loss), loss) <= rules.auc_rc(order, loss) + 1e-12  # the oracle


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20), st.integers(0, 20))
def test_threshold_rejects_as_many_as_it_may(points, twentieths):
    score, error = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    budget = twentieths / 20
    rejected = rules.rejects(score, error, rules.threshold(score, error, budget))
    assert rejected.mean() <= budget + 1e-12
    if budget == 1:
        assert rejected.all()
    elif not rejected.all():  # one more group of equals would be too many
        kept = sorted(zip(score[~rejected], error[~rejected], strict=True))
        assert rejected.sum() + kept.count(kept[-1]) > budget * len(points) - 1e-9


def test_ratio_out_of_a_perfect_wild_classifier():
    rng = np.random.default_rng(2)
    ratio = np.concatenate([np.zeros(500), rng.exponential(2, 500)])
    for share in (0.2, 0.5, 0.9):
        log_ratio = -np.log(share + (1 - share) * ratio)
        got = rules.wild_inlier_share(log_ratio[:500])
        assert got == pytest.approx(share)
        np.testing.assert_allclose(rules.rho_from_wild(log_ratio, got)[500:], ratio[500:].clip(1e-6), rtol=1e-9)
    assert rules.wild_inlier_share(np.full(3, -0.5)) == 0.95  # exp(.5) > 1 would turn the sign
    far = rules.rho_from_wild(np.array([1e6, 0.0, -1e6]), 0.95)
    assert far[0] == 1e-6 and np.isfinite(far).all() and (np.diff(far) > 0).all()


CENTRES = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])


def inliers(n, seed):
    rng = np.random.default_rng([seed, 0])
    y = rng.integers(3, size=n)
    return CENTRES[y] + rng.standard_normal((n, 2)), y


def outliers(n, seed):
    return np.array([8.0, 0.0]) + np.random.default_rng([seed, 1]).standard_normal((n, 2))


def traffic(n, seed):
    """Half and half; whether each is an outlier."""
    x = np.concatenate([inliers(n // 2, seed)[0], outliers(n // 2, seed)])
    order = np.random.default_rng([seed, 2]).permutation(len(x))
    return x[order], order >= n // 2


def body(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())


KINDS = {"estimator": lambda: KNeighborsClassifier(50), "network": body}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strict", [False, True])
def test_learns_the_outliers_from_wild_points(kind, strict):
    x, y = inliers(1500, 0)
    wild, _ = traffic(1500, 1)
    model = SelectiveClassifier(KINDS[kind](), budget=0.5, steps=300, learning_rate=1e-2)
    kept = inliers(300, 5)[0] if strict else None
    assert model.fit(x, y, wild=wild, strict_inliers=kept) is model
    fresh, outlier = traffic(4000, 2)
    score = -model.decision_function(fresh)
    assert roc_auc_score(outlier, score) > 0.97
    alone = SelectiveClassifier(KINDS[kind](), steps=300, learning_rate=1e-2).fit(x, y)
    assert roc_auc_score(outlier, -alone.decision_function(fresh)) < 0.5  # far from every boundary
    assert 0.4 < model.wild_inlier_share_ < 0.6 and model.inlier_share_ == model.wild_inlier_share_
    held = 300  # a fifth of the wild points
    assert abs(model.rejection_rate(fresh) - 0.5) < 4 * 0.5 * (1 / held + 1 / 4000) ** 0.5
    answers = model.predict(fresh)
    assert ((answers == -1) == (score > model.threshold_.score)).all()
    assert (answers[outlier] == -1).mean() > 0.9
    x, y = inliers(2000, 3)
    assert (model.predict_proba(x).argmax(1) == y).mean() > 0.9
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_result_and_nothing_else_changes(kind):
    x, y = inliers(200, 0)
    wild, _ = traffic(200, 1)
    given = KINDS[kind]()
    before = [p.clone() for p in given.parameters()] if kind == "network" else vars(given).copy()

    def run(seed):
        model = SelectiveClassifier(given, budget=0.3, steps=100, random_state=seed).fit(x, y, wild=wild)
        return model.decision_function(x), model.threshold_

    state = torch.get_rng_state()
    (first, at), (again, at_again), (other, _) = run(0), run(0), run(1)
    assert (first == again).all() and at == at_again and (first != other).any()
    assert torch.equal(state, torch.get_rng_state())
    after = list(given.parameters()) if kind == "network" else vars(given)
    assert all(map(torch.equal, before, after)) if kind == "network" else before == after


class Recording(LogisticRegression):
    """Remembers its training set."""

    def fit(self, X, y):
        self.seen_ = X
        return super().fit(X, y)


def rows(x):
    return set(map(tuple, np.asarray(x).tolist()))


def test_what_is_held_out_is_not_trained_on():
    x, y = inliers(100, 0)
    wild, _ = traffic(100, 1)
    model = SelectiveClassifier(Recording(), budget=0.3, holdout=0.25).fit(x, y, wild=wild)
    assert rows(model.estimator_.seen_) == rows(x)
    seen = rows(model.ratio_estimator_.seen_)
    assert len(seen & rows(x)) == 75 and len(seen & rows(wild)) == 75 and len(seen) == 150
    strict = inliers(30, 2)[0]
    model.fit(x, y, wild=wild, strict_inliers=strict)
    seen = rows(model.ratio_estimator_.seen_)
    assert rows(x) <= seen and not seen & rows(strict)


def test_wild_points_that_look_like_inliers():
    """The learned share is then near 1, where the ratio has no scale: said, and cut."""
    x, y = inliers(1000, 0)
    with pytest.warns(UserWarning, match="tamis.SelectiveClassifier: strict_inliers: .* cut to 0.95"):
        model = SelectiveClassifier(KNeighborsClassifier(50)).fit(x, y, wild=inliers(1000, 1)[0])
    assert model.wild_inlier_share_ == 0.95 and np.isfinite(model.decision_function(x)).all()


def test_an_uneven_wild_sample_does_not_move_the_ratio():
    """s is log P_in/P_wild, not the log odds of a training set with ten times as many inliers."""
    x, y = inliers(10000, 0)
    wild, _ = traffic(1000, 1)
    model = SelectiveClassifier(KNeighborsClassifier(50)).fit(x, y, wild=wild)
    assert 0.4 < model.wild_inlier_share_ < 0.6


def test_budget_without_outliers_holds_on_fresh_points():
    """A forest is sure of what it was trained on: its own scores there would reject far more of fresh points."""
    x, y = inliers(1000, 0)
    fresh, truth = inliers(4000, 1)
    model = SelectiveClassifier(RandomForestClassifier(30, random_state=0), budget=0.2, outlier_cost=0.0).fit(x, y)
    assert abs(model.rejection_rate(fresh) - 0.2) < 0.05
    answers = model.predict(fresh)
    answered = answers != -1
    assert (answers == truth)[answered].mean() > (model.estimator_.predict(fresh) == truth).mean() + 0.03
    assert (answers[answered] == model.estimator_.predict(fresh)[answered]).all()


@pytest.mark.parametrize("budget", [0.1, 0.35, 0.5])
def test_calibration_meets_the_budget_on_later_traffic(budget):
    x, y = inliers(500, 0)
    model = SelectiveClassifier(budget=budget).fit(x, y)
    recent, later = traffic(2000, 3)[0], traffic(4000, 4)[0]
    realised = model.calibrate(recent)
    assert budget - 1 / 2000 < realised <= budget and realised == model.rejection_rate(recent)
    assert abs(model.rejection_rate(later) - budget) < 4 * (budget * (1 - budget) * (1 / 2000 + 1 / 4000)) ** 0.5
    assert model.calibrate(recent, budget=0) == 0 and (model.predict(recent) != -1).all()
    assert model.calibrate(recent, budget=1) == 1 and (model.predict(later) == -1).all()


def closeness(x):
    return np.exp(-((x[:, None] - CENTRES) ** 2).sum(2).min(1) / 2)


def test_black_box_with_a_score():
    x, y = inliers(500, 0)
    fresh, outlier = traffic(2000, 1)
    model = SelectiveClassifier(inlier_share=0.5, inlier_score=closeness).fit(x, y)
    error = 1 - model.predict_proba(fresh).max(1)
    ratio = 1 / closeness(fresh) / (1 / closeness(x)).mean()
    want = rules.scod_score(error, ratio, 0.75, 0.5)
    np.testing.assert_allclose(-model.decision_function(fresh), want, rtol=1e-12)
    assert roc_auc_score(outlier, want) > 0.9
    scaled = SelectiveClassifier(inlier_share=0.5, inlier_score=lambda x: 7 * closeness(x)).fit(x, y)
    np.testing.assert_allclose(-scaled.decision_function(fresh), want, rtol=1e-12)


def test_without_score_and_wild_points_it_is_confidence():
    x, y = inliers(300, 0)
    model = SelectiveClassifier(outlier_cost=0.0).fit(x, y)
    np.testing.assert_allclose(model.decision_function(x), model.predict_proba(x).max(1) - 1, atol=1e-15)
    module = SelectiveClassifier(body(), budget=0.2, outlier_cost=0.0, steps=200, learning_rate=1e-2).fit(x, y)
    np.testing.assert_allclose(module.decision_function(x), module.predict_proba(x).max(1) - 1, atol=1e-12)
    assert abs(module.rejection_rate(inliers(3000, 1)[0]) - 0.2) < 4 * 0.4 * (1 / 60 + 1 / 3000) ** 0.5
    assert module.wild_inlier_share_ is None


# decision_function is one score of acceptance a point, -S(x), not a margin between classes.
NOT_A_MARGIN = ("check_classifiers_train", "check_classifiers_classes", "check_decision_proba_consistency")


class WithoutDecision(SelectiveClassifier):
    """All else of it."""

    @property
    def decision_function(self):
        raise AttributeError


@pytest.mark.filterwarnings("ignore")  # its own data provoke some
def test_scikit_learns_own_checks():
    reasons = dict.fromkeys(NOT_A_MARGIN, "decision_function is -S(x)")
    results = check_estimator(SelectiveClassifier(), expected_failed_checks=reasons, on_skip=None)
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == set(NOT_A_MARGIN)
    results = check_estimator(WithoutDecision(), on_skip=None)
    assert {"check_classifiers_train", "check_classifiers_classes"} <= {
        result["check_name"] for result in results if result["status"] == "passed"
    }


def test_it_is_an_estimator_among_others():
    x, y = inliers(300, 0)
    model = SelectiveClassifier(LogisticRegression(C=2.0), budget=0.2, outlier_cost=0.5)
    copy = clone(model)
    assert copy.get_params()["budget"] == 0.2 and copy.get_params()["estimator__C"] == 2.0
    grid = GridSearchCV(model, {"estimator__C": [0.1, 1.0], "budget": [0.0]}, cv=3).fit(x, y)
    assert grid.best_score_ > 0.85
    piped = make_pipeline(StandardScaler(), model).fit(x, y)
    assert set(piped.predict(x)) == {-1, 0, 1, 2}
    wild = traffic(200, 1)[0]
    scaled = StandardScaler().fit(x)
    piped.fit(x, y, selectiveclassifier__wild=scaled.transform(wild))
    assert piped[-1].wild_inlier_share_ is not None
    network = clone(SelectiveClassifier(body(), steps=2)).fit(torch.tensor(x), torch.tensor(y))
    assert network.predict(torch.tensor(x)).shape == (300,)


def test_a_classifier_that_stays_as_it_is():
    x, y = inliers(300, 0)
    wild, _ = traffic(300, 1)
    ready = LogisticRegression().fit(x, y)
    model = SelectiveClassifier(FrozenEstimator(ready), ratio_estimator=KNeighborsClassifier(30), budget=0.4)
    model.fit(x[:50], y[:50], wild=wild)
    np.testing.assert_array_equal(model.predict_proba(x), ready.predict_proba(x))
    with pytest.raises(ValueError, match="SelectiveClassifier: ratio_estimator: expected one that can be trained"):
        SelectiveClassifier(FrozenEstimator(ready)).fit(x, y, wild=wild)
    with pytest.raises(ValueError, match="SelectiveClassifier: estimator: expected one of the classes"):
        SelectiveClassifier(FrozenEstimator(ready)).fit(x, y + 1)


@pytest.mark.parametrize("names", [["a", "bb", "c"], [10, 20, 30], [1.0, 2.0, 3.0], [False, True, True]])
def test_labels_stay_what_they_are(names):
    x, y = inliers(300, 0)
    labels = np.array(names)[y]
    model = SelectiveClassifier().fit(x, labels)
    assert model.predict(x).dtype == labels.dtype and set(model.predict(x)) == set(labels.tolist())
    model.calibrate(x, budget=0.2)
    got = model.predict(x)
    assert set(got.tolist()) == {-1} | set(labels.tolist())
    assert ((got == -1).mean() == pytest.approx(0.2, abs=0.01)) and (got == labels)[got != -1].mean() > 0.9


def test_a_class_of_minus_one_is_refused_only_beside_abstention():
    x, y = inliers(200, 0)
    y = np.where(y > 0, 1, -1)
    model = SelectiveClassifier().fit(x, y)
    assert set(model.predict(x)) == {-1, 1}
    with pytest.raises(ValueError, match="SelectiveClassifier: y: expected no class -1"):
        model.calibrate(x, budget=0.1)
    with pytest.raises(ValueError, match="SelectiveClassifier: y: expected no class -1"):
        SelectiveClassifier(budget=0.1).fit(x, y)


X, Y = inliers(60, 0)
BAD_NAN = X.copy()
BAD_NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    "options, data, error, words",
    [
        ({"budget": 1.1}, {}, ValueError, "budget: expected a number in .0, 1., got 1.1"),
        ({"budget": float("nan")}, {}, ValueError, "budget: expected a number in"),
        ({"budget": "all"}, {}, TypeError, "budget: expected a number, got str"),
        ({"outlier_cost": -0.1}, {}, ValueError, "outlier_cost: expected a number in"),
        ({"inlier_share": 0.0}, {}, ValueError, "inlier_share: expected a number in .0, 1., or None, got 0"),
        ({"holdout": 1.0}, {}, ValueError, "holdout: expected a number in .0, 1.,? ?"),
        ({"steps": 0}, {}, ValueError, "steps: expected 1 or above, got 0"),
        ({"batch_size": 1.5}, {}, TypeError, "batch_size: expected an integer"),
        ({"learning_rate": 0.0}, {}, ValueError, "learning_rate: expected a number above 0"),
        ({"weight_decay": -1.0}, {}, ValueError, "weight_decay: expected a number, 0 or above"),
        ({"random_state": -1}, {}, ValueError, "random_state: expected 0 to"),
        ({"estimator": SVC()}, {}, TypeError, "estimator: expected a classifier with predict_proba, got SVC"),
        ({"ratio_estimator": body()}, {}, TypeError, "ratio_estimator: expected a classifier with predict_proba"),
        ({"inlier_score": 3}, {}, TypeError, "inlier_score: expected a function of X, got int"),
        (
            {"inlier_score": closeness},
            {},
            ValueError,
            "inlier_share: expected a number in .0, 1. beside an inlier_score",
        ),
        ({"inlier_score": closeness}, {"wild": X}, ValueError, "inlier_score: expected none beside wild"),
        (
            {"inlier_score": lambda x: -x[:, 0], "inlier_share": 0.5},
            {},
            ValueError,
            "inlier_score: expected finite numbers",
        ),
        (
            {"inlier_score": lambda x: x, "inlier_share": 0.5},
            {},
            ValueError,
            "inlier_score: expected a result of shape",
        ),
        ({}, {"y": np.zeros(60)}, ValueError, "y: expected at least two classes, got one class"),
        ({}, {"strict_inliers": X}, ValueError, "strict_inliers: expected none without wild"),
        ({}, {"wild": X[:, :1]}, ValueError, "wild: expected .'at least 2', 2., got .60, 1."),
        ({}, {"wild": X[:0]}, ValueError, "wild: expected .'at least 2', 2., got .0, 2."),
        ({}, {"wild": BAD_NAN}, ValueError, "wild: expected finite numbers, got NaN"),
        ({}, {"wild": X, "strict_inliers": X[:0]}, ValueError, "strict_inliers: expected .'at least 1', 2."),
        ({}, {"wild": X, "strict_inliers": BAD_NAN}, ValueError, "strict_inliers: expected finite numbers"),
        ({"estimator": nn.Flatten(0)}, {}, TypeError, "estimator: expected a backbone that gives features"),
        (
            {"estimator": body(), "learning_rate": 1e30},
            {},
            ValueError,
            "learning_rate: expected one with which the loss",
        ),
    ],
)
def test_bad_input_is_named(options, data, error, words):
    with pytest.raises(error, match=f"^tamis.SelectiveClassifier: {words}"):
        SelectiveClassifier(**options).fit(data.pop("X", X), data.pop("y", Y), **data)


@pytest.mark.parametrize("estimator", [None, body()])
def test_bad_x(estimator):
    with pytest.raises(ValueError, match="X contains NaN"):
        SelectiveClassifier(estimator, steps=1).fit(BAD_NAN, Y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SelectiveClassifier(estimator, steps=1).fit(X, Y[:-1])
    model = SelectiveClassifier(estimator, steps=1).fit(X, Y)
    for call in (model.predict, model.predict_proba, model.decision_function, model.calibrate, model.rejection_rate):
        with pytest.raises(ValueError, match="X contains NaN"):
            call(BAD_NAN)
        with pytest.raises(ValueError, match="expecting 2 features|X: expected .'n', 2., got .60, 1."):
            call(X[:, :1])


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_is_imported_when_asked_for():
    done = run("import sys, tamis.sampling as s; print('sklearn' in sys.modules, 'SelectiveClassifier' in dir(s))")
    assert done.stdout == "False True\n", done.stderr
    done = run("import sys; sys.modules['sklearn'] = None; import tamis.sampling; tamis.sampling.SelectiveClassifier")
    assert "ImportError: tamis.SelectiveClassifier needs scikit-learn: pip install 'tamis[pipelines]'" in done.stderr
