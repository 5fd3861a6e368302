"""What weights alone tell of a model: predict its accuracy or phase from statistics of each layer.

For every layer, of its weights and of its biases: mean, standard deviation and the 0, 25, 50, 75 and 100 % quantiles,
seven numbers each, fed to gradient boosting. Unterthiner, Keysers, Gelly, Bousquet & Tolstikhin, "Predicting neural
network accuracy from weights", 2020 (arXiv 2002.11448); they take the variance where we take its root.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, column_or_1d
from threadpoolctl import threadpool_limits

from zoarium._core.errors import MeasureError, ZoariumError
from zoarium._core.seeds import stream
from zoarium.zoo.weight_dataset import groups_of, layers_of, target_table

if TYPE_CHECKING:
    from zoarium.zoo.cohort import Cohort
    from zoarium.zoo.zoo import Zoo

STATISTICS = ("mean", "sd", "q0", "q25", "q50", "q75", "q100")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
LEVEL = 0.95
Learner = Literal["boosting", "ridge"]


def weight_statistics(cohort: Cohort) -> pl.DataFrame:
    """Seven statistics of the weights and of the biases of every layer.

    Parameters
    ----------
    cohort : Cohort
        n models of one architecture.

    Returns
    -------
    polars.DataFrame
        A row a model: ``id`` and columns such as ``first.weight.mean``. Layers are named by their role: "first",
        "hidden1", "hidden2", ..., "last" for those with a matrix or filters ("last" if there is one only), "norm1", ...
        for the others, so that tables of nets of any width and depth can be laid under one another.

    Examples
    --------
    >>> from zoarium.testing import small_cohort
    >>> table = weight_statistics(small_cohort(n=2))
    >>> table.shape, table.columns[1]
    ((2, 29), 'first.weight.mean')
    """
    columns: dict[str, Any] = {"id": list(cohort.ids)}
    for role, names in _roles(cohort.params).items():
        for name in names:
            values = cohort.params[name].detach().double().flatten(1)  # (n, size)
            own = name.rpartition(".")[2]
            quantiles = torch.quantile(values, torch.tensor(QUANTILES, dtype=torch.float64), dim=1)  # (5, n)
            numbers = [values.mean(1), values.std(1, correction=0), *quantiles]
            columns |= {f"{role}.{own}.{s}": v.numpy() for s, v in zip(STATISTICS, numbers, strict=True)}
    return pl.DataFrame(columns)


def _roles(params: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """Tensor names of each layer by its role in the net."""
    layers = layers_of(params)
    affine = [layer for layer, names in layers.items() if any(params[name].dim() > 2 for name in names)]
    roles: dict[str, list[str]] = {}
    for layer, names in layers.items():
        if layer not in affine:
            role = f"norm{sum(r.startswith('norm') for r in roles) + 1}"
        elif layer == affine[-1]:
            role = "last"
        else:
            place = affine.index(layer)
            role = f"hidden{place}" if place else "first"
        roles[role] = names
    return roles


class WeightStatisticsPredictor(BaseEstimator):
    """Predict a property of models from a table of features, by scikit-learn's estimator contract.

    Parameters
    ----------
    task : {"regression", "classification"}, default "regression"
    learner : {"boosting", "ridge"}, default "boosting"
        Gradient boosting (no scaling needed, takes missing layers as they are) or ridge regression / classification on
        standardised features, missing ones set to the mean.
    random_state : int, default 0

    Attributes
    ----------
    model_ : estimator
        The fitted learner.
    n_features_in_ : int
    classes_ : array
        Classes, for classification.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.linspace(0, 1, 40)[:, None]
    >>> WeightStatisticsPredictor(learner="ridge").fit(x, 2 * x[:, 0]).score(x, 2 * x[:, 0]) > 0.99
    True
    """

    def __init__(self, task: str = "regression", learner: str = "boosting", random_state: int = 0) -> None:
        self.task = task
        self.learner = learner
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        fresh = self._fresh().__sklearn_tags__()
        tags.estimator_type, tags.classifier_tags, tags.regressor_tags = (
            fresh.estimator_type, fresh.classifier_tags, fresh.regressor_tags,
        )  # fmt: skip
        if tags.classifier_tags is not None:
            tags.classifier_tags.multi_label = False  # one target a predictor, whatever the learner could do
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        return tags

    def _fresh(self) -> Any:
        if self.task not in ("regression", "classification") or self.learner not in ("boosting", "ridge"):
            raise ValueError(
                f"task must be 'regression' or 'classification' and learner 'boosting' or 'ridge', found {self.task!r} "
                f"and {self.learner!r}"
            )
        classes = self.task == "classification"
        if self.learner == "ridge":
            alphas = np.logspace(-3, 3, 13)
            ridge = RidgeClassifierCV(alphas, class_weight="balanced") if classes else RidgeCV(alphas)
            return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), ridge)
        # Zoos are small next to the data boosting is tuned for: small leaves, few of them, and no rows set aside.
        dials: dict[str, Any] = {
            "max_leaf_nodes": 15, "min_samples_leaf": 5, "learning_rate": 0.1, "max_iter": 100, "early_stopping": False,
            "random_state": self.random_state,
        }  # fmt: skip
        if classes:
            return HistGradientBoostingClassifier(class_weight="balanced", **dials)
        return HistGradientBoostingRegressor(**dials)

    def fit(self, X: Any, y: Any) -> WeightStatisticsPredictor:
        """Fit on features (n, f), NaN where a model lacks a layer, and targets (n,)."""
        with threadpool_limits(1):  # sums in one order: the same bits on any number of cores
            self.model_ = self._fresh().fit(X, y if y is None else column_or_1d(y, warn=True))
        self.n_features_in_ = self.model_.n_features_in_
        if hasattr(self.model_, "feature_names_in_"):
            self.feature_names_in_ = self.model_.feature_names_in_
        if self.task == "classification":
            self.classes_ = self.model_.classes_
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions (n,)."""
        check_is_fitted(self)
        with threadpool_limits(1):
            return self.model_.predict(X)

    def score(self, X: Any, y: Any) -> float:
        """R² or accuracy."""
        return float((r2_score if self.task == "regression" else accuracy_score)(y, self.predict(X)))


SCHEMA = {
    "target": pl.String, "score": pl.String, "predictor": pl.String, "value": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "ahead": pl.Float64, "ahead_low": pl.Float64, "ahead_high": pl.Float64,
    "n_models": pl.Int64, "n_cells": pl.Int64, "reason": pl.String,
}  # fmt: skip


def predict_from_weights(
    zoo: Zoo, targets: Sequence[str] = ("test_accuracy", "phase"), *,
    learner: Learner = "boosting", folds: int = 5, bootstrap: int = 1000, seed: int = 0,
) -> pl.DataFrame:  # fmt: skip
    """How well statistics of the weights predict targets, beside predictors that see no weights.

    Every model is predicted by a learner that has seen no model of its cell (cross-validation with cells as groups).

    Parameters
    ----------
    zoo : Zoo
    targets : sequence of str, default ("test_accuracy", "phase")
        As in :class:`~zoarium.zoo.weight_dataset.WeightDataset`. Cells whose phase is ambiguous are left out.
    learner : {"boosting", "ridge"}, default "boosting"
        See :class:`WeightStatisticsPredictor`.
    folds : int, default 5
        Parts of the cross-validation; fewer where there are fewer cells.
    bootstrap : int, default 1000
        Resamples of cells for the 95 % intervals.
    seed : int, default 0
        Deals cells to folds, draws the resamples and seeds the learner.

    Returns
    -------
    polars.DataFrame
        Three rows a target: the predictor "weights", "hyperparameters" (the axes of the zoo, same learner) and
        "constant" (mean or most frequent class of the training part), each with its score (R² for numbers, balanced
        accuracy for text) and interval. ``ahead`` is how far "weights" is ahead of the row's predictor, with the
        interval of that difference on the same resamples. ``reason`` says why a value is missing.

    Raises
    ------
    MeasureError
        For fewer than 2 folds or an unknown learner.

    Notes
    -----
    Weights carry the hyperparameters (width, decay) to a large part, so the line to beat is "hyperparameters". The
    intervals hold the fitted learners fixed. A class found in one cell only is never predicted and counts as missed.
    """
    if folds < 2 or bootstrap < 1 or learner not in ("boosting", "ridge"):
        raise MeasureError(
            "predict_from_weights needs folds >= 2, bootstrap >= 1 and learner 'boosting' or 'ridge', found "
            f"folds={folds}, bootstrap={bootstrap}, learner={learner!r}."
        )
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    features = pl.concat(
        [weight_statistics(ref.load()) for ref in zoo.cohorts()] or [pl.DataFrame({"id": []})], how="diagonal"
    )
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            rows += _one_target(zoo, name, features, learner, folds, bootstrap, seed)
        except ZoariumError as error:
            rows.append({"target": name, "reason": str(error)})
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _one_target(
    zoo: Zoo, name: str, features: pl.DataFrame, learner: str, folds: int, bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    table, classes = target_table(zoo, [name])
    if name == "phase" and "ambiguous" in classes[name]:
        table = table.filter(pl.col(name) != classes[name].index("ambiguous"))
    table = table.filter(pl.col(name).is_finite()).join(features, on="id", how="inner", maintain_order="left")
    task = "classification" if name in classes else "regression"
    y = table[name].to_numpy()
    groups = groups_of(zoo, table["id"].to_list())
    cells = np.unique(groups)
    if len(cells) < 2 or len(np.unique(y)) < 2:
        raise MeasureError(
            f"{name}: {len(cells)} cell(s) with {len(np.unique(y))} different value(s) leave nothing to predict; "
            "grow a zoo with more cells."
        )
    inputs = {
        "weights": table.drop("id", name).to_numpy(),
        "hyperparameters": _hyperparameters(zoo, table["id"].to_list()),
        "constant": np.zeros((len(y), 1)),
    }
    draw = np.random.default_rng(stream("predict_from_weights", seed, name))
    fold = _deal(y, groups, min(folds, len(cells)), draw)
    # Cells are resampled within classes, or a rare class would drop out of the balance of some resamples.
    weight = _resamples(y if task == "classification" else None, groups, bootstrap, draw)  # (bootstrap, N)
    score = _balanced_accuracy if task == "classification" else _r_squared
    points, draws = {}, {}
    for predictor, x in inputs.items():
        predicted = np.empty_like(y)
        for k in range(fold.max() + 1):
            model = _learner(predictor, task, learner, y[fold != k], seed)
            with threadpool_limits(1):
                predicted[fold == k] = model.fit(x[fold != k], y[fold != k]).predict(x[fold == k])
        points[predictor] = score(y, predicted, np.ones((1, len(y))))[0]
        draws[predictor] = score(y, predicted, weight)
    return [
        {
            "target": name, "score": "balanced accuracy" if task == "classification" else "R²", "predictor": predictor,
            "value": points[predictor], **_interval("", draws[predictor]),
            **({} if predictor == "weights" else {
                "ahead": points["weights"] - points[predictor],
                **_interval("ahead_", draws["weights"] - draws[predictor]),
            }),
            "n_models": len(y), "n_cells": len(cells), "reason": "",
        }
        for predictor in inputs
    ]  # fmt: skip


def _learner(predictor: str, task: str, learner: str, y: np.ndarray, seed: int) -> Any:
    if predictor == "constant" or len(np.unique(y)) < 2:
        return DummyClassifier() if task == "classification" else DummyRegressor()
    return WeightStatisticsPredictor(task, learner, stream("learner", seed) % 2**31)


def _hyperparameters(zoo: Zoo, ids: Sequence[str]) -> np.ndarray:
    """The axes of the zoo as numbers (N, f): logarithms of positive ones, text one-hot."""
    axes = [axis for axis in zoo.axes if axis in zoo.table.columns and axis != "seed"]
    table = pl.DataFrame({"id": list(ids)}).join(
        zoo.table.select("id", *axes), on="id", how="left", maintain_order="left"
    )
    columns: list[np.ndarray] = [np.zeros(len(ids))]  # so that a zoo without axes has a feature
    for axis in axes:
        column = table[axis]
        if column.dtype.is_numeric():
            numbers = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
            columns.append(np.log(numbers) if np.nanmin(numbers, initial=np.inf) > 0 else numbers)
        else:
            text = np.array([str(value) for value in column.to_list()])
            columns += [(text == value).astype(float) for value in sorted(set(text))]
    return np.stack(columns, axis=1)


def _deal(y: np.ndarray, groups: np.ndarray, folds: int, draw: np.random.Generator) -> np.ndarray:
    """A fold a model, one for all of a group; groups with like targets are dealt to different folds."""
    cells = draw.permutation(np.unique(groups))
    level = np.array([y[groups == cell].mean() for cell in cells])
    cells = cells[np.argsort(level, kind="stable")]
    turns = np.concatenate([draw.permutation(folds) for _ in range(-(-len(cells) // folds))])[: len(cells)]
    of = dict(zip(cells.tolist(), turns.tolist(), strict=True))
    kept = {turn: n for n, turn in enumerate(sorted(set(turns.tolist())))}
    return np.array([kept[of[group]] for group in groups.tolist()])


def _resamples(y: np.ndarray | None, groups: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """How often each model appears when cells are drawn with replacement (within classes, if given): (count, N)."""
    cells, first, place = np.unique(groups, return_index=True, return_inverse=True)
    strata = np.zeros(len(cells)) if y is None else y[first]
    times = np.zeros((count, len(cells)))
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        times[:, inside] = draw.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=count)
    return times[:, place]


def _r_squared(y: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean = weight @ y / weight.sum(1)
    total = (weight * (y - mean[:, None]) ** 2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 1 - weight @ (y - predicted) ** 2 / total, np.nan)


def _balanced_accuracy(y: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    right = (y == predicted).astype(float)
    recalls = []
    for label in np.unique(y):
        of = weight * (y == label)  # (B, N)
        with np.errstate(divide="ignore", invalid="ignore"):
            recalls.append(of @ right / of.sum(1))  # NaN where a resample holds none of the class
    return np.nanmean(np.stack(recalls), axis=0)


def _interval(prefix: str, draws: np.ndarray) -> dict[str, float | None]:
    known = draws[np.isfinite(draws)]
    if not len(known):
        return {f"{prefix}low": None, f"{prefix}high": None}
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {f"{prefix}low": float(low), f"{prefix}high": float(high)}
