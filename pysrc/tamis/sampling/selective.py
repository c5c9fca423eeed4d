"""A classifier that may abstain, on its own likely errors and on what it was never meant for, within one budget."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..common.checks import check_integer, check_number, fail
from . import selective_network as network
from . import selective_rules as rules
from .selective_rules import Array

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        check_array,
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ImportError as error:
    raise ImportError("tamis.SelectiveClassifier needs scikit-learn: pip install 'tamis[pipelines]'") from error

FN = "SelectiveClassifier"
ABSTAIN = -1
_FOLDS = 5
_SMALLEST = 1e-9  # of a probability whose odds are taken
_ANY_RANK: dict[str, Any] = {"ensure_2d": False, "allow_nd": True}
_WITH_ABSTAIN = {"b": np.int64, "i": np.int64, "u": np.int64, "f": np.float64}  # by kind; others: objects


class _Outputs(NamedTuple):
    """probabilities [n, classes], error [n], log_ratio [n] (log P_in/P_wild; None where none was learned)."""

    probabilities: Array
    error: Array
    log_ratio: Array | None


class _Data(NamedTuple):
    """Of a fit, checked. target: [n], y as 0 to classes - 1."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    target: npt.NDArray[np.int64]
    wild: npt.NDArray[Any] | None
    strict: npt.NDArray[Any] | None


class _Traffic(NamedTuple):
    """What sets a threshold: points, and what the model says of them; the wild inlier share where it is learned."""

    x: npt.NDArray[Any]
    outputs: _Outputs
    learned_share: float | None = None


class SelectiveClassifier(ClassifierMixin, BaseEstimator):
    """Abstains on a share `budget` of the traffic so that wrong answers and answers on outliers cost least.

    Traffic is a share inlier_share of inliers, which look like X, and of outliers, which have no right answer. A wrong
    answer on an inlier costs 1 - outlier_cost, any answer on an outlier costs outlier_cost. What is rejected first is
    what costs most to answer, S(x) = ((1 - c) e + c rho) / (pi + (1 - pi) rho), with e = 1 - the largest probability
    and rho = P_out/P_in. Where rho comes from:

    - `fit(X, y, wild=...)`, unlabelled traffic with outliers in it: rho is learned from inliers against wild points,
      its scale from `strict_inliers`. An estimator of scikit-learn is joined by `ratio_estimator`; an nn.Module, a
      backbone, is trained with a head for the classes and one for inlier or wild (the loss-based plug-in).
    - `inlier_score`: any score of how much a point looks like an inlier, as 1 / rho but for its scale (the black-box
      plug-in). It is worth what the score is worth: look at its AUROC first.
    - neither: rho = 0, and S orders by e: the classifier's confidence alone.

    Args:
        estimator: a classifier of scikit-learn with predict_proba (None: scaled logistic regression), or an nn.Module
            that gives features [rows, ...] for inputs [rows, ...]. Copied, never changed.
        budget: share of the traffic to reject, in [0, 1]; at 0 nothing is, and predict is the estimator's.
        outlier_cost: c, in [0, 1].
        inlier_share: pi, in (0, 1]; None: as learned with wild points. An inlier_score needs it.
        inlier_score: X to [rows] numbers, 0 or above (of the fitted X positive), larger for inliers; rescaled so that
            1 / it has mean 1 over the fitted X.
        ratio_estimator: a classifier of scikit-learn, inlier against wild; None: as `estimator`. Its probabilities are
            taken as they are: class weights would move the ratio.
        holdout: in (0, 1), the share of X that stands for strict_inliers where there are none, and of wild points that
            set the threshold; neither is trained on.
        steps, batch_size, learning_rate, weight_decay: of an nn.Module's training, by AdamW on a cosine.
        random_state: of what is held out and of an nn.Module's training, 0 to 2**31 - 1; the same gives the same bits.

    Attributes:
        classes_: [classes]. n_features_in_: X.shape[1]. estimator_: the fitted estimator, or network.
        threshold_: (score, error); rejected is what has a larger S, or the same S and a larger e.
        inlier_share_: pi in use. wild_inlier_share_: as learned, at most 0.95; None without wild points.

    `predict` gives -1 for abstention, so no class may be -1 unless budget is 0; classes that are no numbers come in an
    object array beside it. `score` counts an abstention as an error. `decision_function` is -S and no class's score, so
    scorers that rank by it, as roc_auc does, do not apply. An estimator is given plain arrays, whatever X was.

    Source: 2301.12386 (Narasimhan, Menon, Jitkrittum, Kumar), eq. 3, 5, 8, 10; the single score is derived from them.
    """

    wild_inlier_share_: float | None

    def __init__(
        self,
        estimator: Any = None,
        *,
        budget: float = 0.0,
        outlier_cost: float = 0.75,
        inlier_share: float | None = None,
        inlier_score: Any = None,
        ratio_estimator: Any = None,
        holdout: float = 0.2,
        steps: int = 1000,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.budget = budget
        self.outlier_cost = outlier_cost
        self.inlier_share = inlier_share
        self.inlier_score = inlier_score
        self.ratio_estimator = ratio_estimator
        self.holdout = holdout
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, wild: Any = None, strict_inliers: Any = None) -> "SelectiveClassifier":
        """Trains, and sets the threshold.

        The threshold is the (1 - budget) quantile of S over wild points that were held out; without any, over X, by
        cross-validation (of an nn.Module: over what was held out), which has no outliers: see `calibrate`.

        Args:
            X: [n, width], for an nn.Module [n, ...]; inliers.
            y: [n], at least two classes.
            wild: [m, ...] with m >= 2, unlabelled traffic.
            strict_inliers: [k, ...], not in X, that cannot be outliers; needs wild. Inliers that outliers resemble push
                the learned share up, towards 1: the mean of P_wild/P_in over all inliers is 1, whatever the share.
        Raises:
            TypeError, ValueError: an argument, before any training.
        """
        self._check_parameters()
        X, y = self._inliers(X, y)
        if wild is None and strict_inliers is not None:
            fail(FN, "strict_inliers", "none without wild", "some")
        if wild is None and self.inlier_score is not None and self.inlier_share is None:
            fail(FN, "inlier_share", "a number in (0, 1] beside an inlier_score", None)
        if wild is not None and self.inlier_score is not None:
            fail(FN, "inlier_score", "none beside wild, which replaces it", "one")
        wild = None if wild is None else self._like("wild", wild, X, 2)
        strict_inliers = None if strict_inliers is None else self._like("strict_inliers", strict_inliers, X, 1)
        self.classes_, target = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            fail(FN, "y", "at least two classes", "one class")
        self._check_labels(self.budget)
        self.wild_inlier_share_ = None  # until it is learned
        self._outlier_cost = float(self.outlier_cost)
        self._mean_inverse = 1.0 if self.inlier_score is None else self._scale(self._inlier_score(X))
        data = _Data(X, y, target, wild, strict_inliers)
        traffic = self._fit_network(data) if isinstance(self.estimator, nn.Module) else self._fit_estimator(data)
        share = traffic.learned_share
        if share == rules.CAP:
            warnings.warn(
                f"tamis.{FN}: strict_inliers: expected points that cannot be outliers, got some like those in wild, or "
                f"a poor classifier tells them apart: the learned share is cut to {rules.CAP}, rho's scale doubtful",
                stacklevel=2,
            )
        share = share if self.inlier_share is None else self.inlier_share
        self.inlier_share_ = 1.0 if share is None else float(share)  # without outliers it only scales S
        score = self._score(traffic.x, traffic.outputs)
        self.threshold_ = rules.threshold(score, traffic.outputs.error, self.budget)
        return self

    def decision_function(self, X: Any) -> Array:
        """[n] float64, -S(x): the larger, the rather it is answered. One number a point, not one a class."""
        X = self._seen(X)
        return -self._score(X, self._outputs(X))

    def predict_proba(self, X: Any) -> Array:
        """[n, classes] float64, in the order of classes_: the estimator's, as for an inlier."""
        X = self._seen(X)
        network_ = isinstance(self.estimator_, network.TwoHeads)
        return self._outputs(X).probabilities if network_ else np.asarray(self.estimator_.predict_proba(X))

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """[n]: the most probable class (ties: the first), or -1 where rejected."""
        X = self._seen(X)
        outputs = self._outputs(X)
        answers = self.classes_[outputs.probabilities.argmax(1)]
        if self.threshold_ != rules.NEVER:
            answers = answers.astype(_WITH_ABSTAIN.get(answers.dtype.kind, object))
            answers[rules.rejects(self._score(X, outputs), outputs.error, self.threshold_)] = ABSTAIN
        return np.asarray(answers)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share answered rightly: an abstention is an error."""
        right = np.array([a == b for a, b in zip(self.predict(X).tolist(), np.asarray(y).tolist(), strict=True)])
        return float(np.average(right, weights=sample_weight))

    def calibrate(self, X: Any, *, budget: float | None = None) -> float:
        """Sets the threshold anew, from recent unlabelled traffic: its (1 - budget) quantile of S.

        Args:
            X: [n, ...]; the share rejected of later traffic is then off by about sqrt(budget (1 - budget) / n).
            budget: None: as constructed.
        Returns:
            The share of X that is rejected: at most the budget, and less only by what cannot be cut.
        """
        X = self._seen(X)
        budget = _share("budget", self.budget if budget is None else budget)
        self._check_labels(budget)
        outputs = self._outputs(X)
        score = self._score(X, outputs)
        self.threshold_ = rules.threshold(score, outputs.error, budget)
        return float(rules.rejects(score, outputs.error, self.threshold_).mean())

    def rejection_rate(self, X: Any) -> float:
        """The share of X that is rejected; far from the budget, the traffic has drifted."""
        X = self._seen(X)
        outputs = self._outputs(X)
        return float(rules.rejects(self._score(X, outputs), outputs.error, self.threshold_).mean())

    def _score(self, X: npt.NDArray[Any], outputs: _Outputs) -> Array:
        if outputs.log_ratio is not None:
            assert self.wild_inlier_share_ is not None
            ratio = rules.rho_from_wild(outputs.log_ratio, self.wild_inlier_share_)
        elif self.inlier_score is not None:
            ratio = rules.rho_from_score(self._inlier_score(X), self._mean_inverse)
        else:
            ratio = np.zeros(len(X))
        return rules.scod_score(outputs.error, ratio, self._outlier_cost, self.inlier_share_)

    def _outputs(self, X: npt.NDArray[Any]) -> _Outputs:
        if isinstance(self.estimator_, network.TwoHeads):
            got = network.outputs(self.estimator_, X)
            probabilities = torch.from_numpy(got.logits).softmax(1).numpy()
            return _Outputs(probabilities, network.error_of(got.logits), got.log_ratio)
        probabilities = np.asarray(self.estimator_.predict_proba(X))
        log_ratio = None if self.wild_inlier_share_ is None else self._log_ratio(X)
        return _Outputs(probabilities, 1 - probabilities.max(1), log_ratio)

    def _log_ratio(self, X: npt.NDArray[Any]) -> Array:
        """log P_in/P_wild by ratio_estimator_: its odds over those of its training set."""
        wild, inlier = np.clip(self.ratio_estimator_.predict_proba(X), _SMALLEST, 1).T
        return np.asarray(np.log(inlier) - np.log(wild) - self._log_prior)

    def _fit_estimator(self, data: _Data) -> _Traffic:
        estimator = make_pipeline(StandardScaler(), LogisticRegression()) if self.estimator is None else self.estimator
        self.estimator_ = clone(estimator).fit(data.x, data.y)
        if not np.array_equal(self.estimator_.classes_, self.classes_):
            fail(FN, "estimator", f"one of the classes {list(self.classes_)}", list(self.estimator_.classes_))
        if data.wild is None:
            return _Traffic(data.x, self._fresh_outputs(estimator, data))
        inliers, strict = (data.x, data.strict) if data.strict is not None else self._split(data.x, 0)
        wild, recent = self._split(data.wild, 1)
        labels = (np.arange(len(inliers) + len(wild)) < len(inliers)).astype(np.int64)
        against = clone(estimator if self.ratio_estimator is None else self.ratio_estimator)
        self.ratio_estimator_ = against.fit(np.concatenate([inliers, wild]), labels)
        if not np.array_equal(self.ratio_estimator_.classes_, [0, 1]):
            fail(FN, "ratio_estimator", "one that can be trained", "one that stays as it is")
        self._log_prior = float(np.log(len(inliers) / len(wild)))
        self.wild_inlier_share_ = rules.wild_inlier_share(self._log_ratio(strict))
        return _Traffic(recent, self._outputs(recent), self.wild_inlier_share_)

    def _fresh_outputs(self, estimator: Any, data: _Data) -> _Outputs:
        """For X itself, each row by a model that has not seen it: the fitted one is too sure of them."""
        folds = min(_FOLDS, int(np.bincount(data.target).min()))
        if self.budget in (0, 1) or folds < 2:  # nothing to set, or too few to hold any out
            return self._outputs(data.x)
        probabilities = cross_val_predict(estimator, data.x, data.y, cv=folds, method="predict_proba")
        return _Outputs(probabilities, 1 - probabilities.max(1), None)

    def _fit_network(self, data: _Data) -> _Traffic:
        x, target, strict = data.x, data.target, data.strict
        if strict is None:
            kept, held = self._split(np.arange(len(x)), 0)
            x, target, strict = data.x[kept], target[kept], data.x[held]
        wild, recent = (None, strict) if data.wild is None else self._split(data.wild, 1)
        self.estimator_ = network.train(
            self.estimator,
            x,
            target,
            len(self.classes_),
            wild,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            seed=self.random_state,
        )
        if wild is not None:
            log_ratio = network.outputs(self.estimator_, strict).log_ratio
            assert log_ratio is not None
            self.wild_inlier_share_ = rules.wild_inlier_share(log_ratio)
        return _Traffic(recent, self._outputs(recent), self.wild_inlier_share_)

    def _split(self, x: npt.NDArray[Any], of: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Kept and held out, at random, at least one of each."""
        order = np.random.default_rng([self.random_state, of]).permutation(len(x))
        held = min(max(round(self.holdout * len(x)), 1), len(x) - 1)
        return x[np.sort(order[held:])], x[np.sort(order[:held])]

    def _inlier_score(self, X: npt.NDArray[Any]) -> Array:
        score = np.asarray(self.inlier_score(X), dtype=np.float64)
        if score.shape != (len(X),):
            fail(FN, "inlier_score", f"a result of shape {[len(X)]}", list(score.shape))
        if not (np.isfinite(score) & (score >= 0)).all():
            bad = score[~(np.isfinite(score) & (score >= 0))][0]
            fail(FN, "inlier_score", "finite numbers, 0 or above", float(bad))
        return score

    def _scale(self, score: Array) -> float:
        """Of the inliers' scores."""
        if not (score > 1e-300).all():
            fail(FN, "inlier_score", "positive numbers for X, which are inliers", float(score.min()))
        return float((1 / score).mean())

    def _check_parameters(self) -> None:
        for name in ("budget", "outlier_cost"):
            _share(name, getattr(self, name))
        if self.inlier_share is not None:
            check_number(FN, "inlier_share", self.inlier_share, "a number in (0, 1], or None", lambda v: 0 < v <= 1)
        check_number(FN, "holdout", self.holdout, "a number in (0, 1)", lambda v: 0 < v < 1)
        if self.inlier_score is not None and not callable(self.inlier_score):
            fail(FN, "inlier_score", "a function of X", type(self.inlier_score).__name__, TypeError)
        for name in ("steps", "batch_size"):
            if check_integer(FN, name, getattr(self, name)) < 1:
                fail(FN, name, "1 or above", getattr(self, name))
        check_number(FN, "learning_rate", self.learning_rate, "a number above 0", lambda v: 0 < v < np.inf)
        check_number(FN, "weight_decay", self.weight_decay, "a number, 0 or above", lambda v: 0 <= v < np.inf)
        if not 0 <= check_integer(FN, "random_state", self.random_state) < 2**31:
            fail(FN, "random_state", "0 to 2**31 - 1", self.random_state)
        for name in ("estimator", "ratio_estimator"):
            value = getattr(self, name)
            if value is None or (name == "estimator" and isinstance(value, nn.Module)):
                continue
            if name == "ratio_estimator" and isinstance(self.estimator, nn.Module):
                fail(FN, name, "none beside an nn.Module, which has a head for it", type(value).__name__)
            if not hasattr(value, "predict_proba"):
                fail(FN, name, "a classifier with predict_proba", type(value).__name__, TypeError)

    def _check_labels(self, budget: float) -> None:
        if budget > 0 and any(label == ABSTAIN for label in self.classes_.tolist()):
            fail(FN, "y", "no class -1, which stands for abstention", "one")

    def _inliers(self, X: Any, y: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if isinstance(self.estimator, nn.Module):
            X, y = check_array(_plain(X), **_ANY_RANK, input_name="X"), column_or_1d(_plain(y), warn=True)
            check_consistent_length(X, y)
            if X.ndim < 2:
                fail(FN, "X", "[n, ...] of rank 2 or above", list(X.shape))
            self._shape, self.n_features_in_ = X.shape[1:], X.shape[1]
        else:
            X, y = validate_data(self, X, y)
        check_classification_targets(y)
        return X, y

    def _like(self, name: str, x: Any, inliers: npt.NDArray[Any], least: int) -> npt.NDArray[Any]:
        """[at least `least`, ...], else as inliers."""
        columns, known = getattr(x, "columns", None), getattr(self, "feature_names_in_", None)
        if columns is not None and known is not None and list(columns) != list(known):
            fail(FN, name, f"the columns of X, {list(known)}", list(columns))
        x = check_array(_plain(x), **_ANY_RANK, ensure_all_finite=False, ensure_min_samples=0)
        if x.shape[1:] != inliers.shape[1:] or len(x) < least:
            fail(FN, name, f"{[f'at least {least}', *inliers.shape[1:]]}", list(x.shape))
        if not np.isfinite(x).all():
            fail(FN, name, "finite numbers", "NaN or inf")
        return np.asarray(x)

    def _seen(self, X: Any) -> npt.NDArray[Any]:
        check_is_fitted(self)
        if isinstance(self.estimator_, network.TwoHeads):
            X = check_array(_plain(X), **_ANY_RANK, input_name="X")
            if X.shape[1:] != self._shape:
                fail(FN, "X", f"{['n', *self._shape]}", list(X.shape))
            return np.asarray(X)
        return np.asarray(validate_data(self, X, reset=False))


def _share(name: str, value: object) -> float:
    return check_number(FN, name, value, "a number in [0, 1]", lambda v: 0 <= v <= 1)


def _plain(x: Any) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x
