"""The rule that tells the phase of a cell, and its thresholds.

    phase    train loss   mode connectivity   CKA     in words
    I        high         negative            -       under-fitted and under-sized
    II       high         zero or positive    -       under-fitted
    III      small        negative            -       under-sized
    IV-A     small        zero or positive    small   over-fitted
    IV-B     small        zero or positive    large   generalising

after the phases of "A model zoo on phase transitions in neural networks", 2025 (arXiv 2504.18072) and of Yang et al.,
"Taxonomizing local versus global structure in neural network loss landscapes", 2021. Neither publishes thresholds;
those here come from the data and are stored with the labels:

* ``collapsed``, decided first and left out of every cut: a test error of 60 % or more, or none because the outputs are
  not finite. Where no cell has a test error (regression): no finite training loss, or outputs that do not vary.
* loss: Otsu's cut on the logarithm of the training loss of the cells.
* mode connectivity is *negative* below a band of ±max(1 pp, 2 sd over seed pairs), the sd being the median of the
  cells': a pooled variance is that of the narrowest nets, ±16 pp on the demo's grid, and no barrier leaves such a band.
* CKA: Otsu's cut within the cells of small loss without a barrier, provided that its two sides lie at least 0.1 apart;
  otherwise over all cells. Otsu's method always finds two sides: without the proviso every grid would have over-fitted
  cells, if only the less similar half of a fine phase IV.

Two readings of the table. It says nothing of mode connectivity near zero at high loss; a barrier is what sets I and III
apart, so a cell without one is II or IV. And the Hessian is not asked: its trace goes with the training loss on clean
labels, but *against* it on noisy ones, where fitted nets are sharp. Training loss decides alone and ``hessian_agrees``
says whether Otsu's cut on the logarithm of the trace would have chosen the same side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from zoarium._core.errors import MeasureError, unknown_name
from zoarium._core.seeds import stream
from zoarium._core.statistics import otsu

CODES = np.array(["", "I", "II", "III", "IV-A", "IV-B", "collapsed"], dtype=object)
BY_MODEL = ("train_loss", "hessian_trace", "test_error")
BY_PAIR = ("mode_connectivity", "cka")
LEAST_CKA_GAP = 0.1
LEAST_BAND = 1.0  # percentage points


@dataclass(frozen=True)
class Thresholds:
    """Where phases part; None is to be found from the data.

    Parameters
    ----------
    loss : float, optional
        Training loss (nats, or squared error) above which it is high.
    hessian : float, optional
        Hessian trace above which it is large; only for ``hessian_agrees``.
    mc_band : float, optional
        Half-width of "near zero" for mode connectivity, in percentage points.
    cka : float, optional
        CKA, in [-1, 1], above which it is large.
    collapsed_error : float, optional
        Test error, a share, from which a cell is collapsed. Default 0.6; for a zoo, two thirds of the error of guessing
        among its classes, which is 0.6 for ten.
    min_confidence : float, optional
        Share of resamples below which a label is "ambiguous". Default 0.6.

    Examples
    --------
    >>> Thresholds.from_json(Thresholds(loss=0.1).to_json()) == Thresholds(loss=0.1)
    True
    """

    loss: float | None = None
    hessian: float | None = None
    mc_band: float | None = None
    cka: float | None = None
    collapsed_error: float | None = None
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        ranges = {
            "loss": (0, math.inf), "hessian": (0, math.inf), "mc_band": (0, math.inf), "cka": (-1, 1),
            "collapsed_error": (0, math.inf), "min_confidence": (0, 1),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise MeasureError(f"threshold {name} must be a number from {low} to {high}, found {value!r}.")

    def to_json(self) -> str:
        """The thresholds as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Thresholds:
        """Thresholds from JSON, as :meth:`to_json` gives it."""
        content = json.loads(text)
        known = [f.name for f in fields(cls)]
        for name in content:
            if name not in known:
                raise MeasureError(unknown_name("threshold", name, known))
        return cls(**content)


def typical_band(connectivity: Sequence[np.ndarray]) -> float:
    """Half-width of "near zero" in percentage points, from the mode connectivity of the seed pairs of each cell."""
    spreads = [v[np.isfinite(v)].std(ddof=1) for v in connectivity if np.isfinite(v).sum() > 1]
    return max(LEAST_BAND, 2 * float(np.median(spreads))) if spreads else LEAST_BAND


def resample(
    values: Mapping[str, list[np.ndarray]], names: Sequence[str], draws: int, key: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Means of resampled seeds, (draws, cells) for each quantity; pairs are those of different seeds drawn."""
    means = {name: np.full((draws, len(names)), math.nan) for name in values}
    for n, cell in enumerate(names):
        random = np.random.default_rng(stream("phase_labels", *key, cell))
        k = max(len(values[name][n]) for name in BY_MODEL)
        counts = _draw(random, k, draws, distinct=2 if k > 1 else 1)  # (draws, k)
        for name in values:
            own = values[name][n]
            if not len(own):
                continue
            if name in BY_MODEL:
                weights = counts if len(own) == k else _draw(random, len(own), draws)
            elif len(own) == k * (k - 1) // 2:
                i, j = np.triu_indices(k, 1)
                weights = counts[:, i] * counts[:, j]
            else:
                weights = _draw(random, len(own), draws)
            known = np.isfinite(own)
            total = weights @ known
            with np.errstate(invalid="ignore", divide="ignore"):
                means[name][:, n] = (weights @ np.where(known, own, 0)) / np.where(total > 0, total, math.nan)
    return means


def _draw(random: np.random.Generator, k: int, draws: int, distinct: int = 1) -> np.ndarray:
    """How often each of `k` things is drawn in `k` draws with replacement, (draws, k); at least `distinct` are."""
    if k == 0:
        return np.zeros((draws, 0), dtype=int)
    counts = random.multinomial(k, np.full(k, 1 / k), size=draws)
    while len(poor := np.flatnonzero((counts > 0).sum(1) < distinct)):
        counts[poor] = random.multinomial(k, np.full(k, 1 / k), size=len(poor))
    return counts


def label_cells(
    means: Mapping[str, np.ndarray], given: Thresholds, measured: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes (see `CODES`) and cuts of many resamples of a grid at once, from means of shape (draws, cells)."""
    loss, trace, error = (means[name] for name in BY_MODEL)
    connectivity, cka = (means[name] for name in BY_PAIR)
    if np.isfinite(error).any():
        collapsed = ~(error < (given.collapsed_error or math.inf)) & measured["test_error"]
    else:
        constant = ~np.isfinite(cka) & measured["cka"] & np.isfinite(cka).any()
        collapsed = constant | (~np.isfinite(loss) & measured["train_loss"])
    usable = ~collapsed & np.isfinite(loss)

    cuts: dict[str, np.ndarray] = {}
    for name, numbers, value in (("loss", loss, given.loss), ("hessian", trace, given.hessian)):
        if value is not None:
            cuts[name] = np.full(len(loss), float(value))
            continue
        numbers = np.where(usable, numbers, math.nan)
        positive = np.where(numbers > 0, numbers, math.nan)
        least = np.min(np.where(np.isfinite(positive), positive, math.inf), axis=1, keepdims=True, initial=math.inf)
        # A loss or trace at or below zero counts as the least positive one: its logarithm must not stand far off.
        floored = np.where(np.isfinite(numbers) & np.isfinite(least), np.fmax(numbers, least), math.nan)
        with np.errstate(divide="ignore"):
            cut, cuts[f"{name}_separation"] = otsu(np.log(floored))
        cuts[name] = np.exp(cut)

    high = loss > cuts["loss"][:, None]
    barrier = connectivity < -(given.mc_band or 0.0)
    decided = usable & np.isfinite(connectivity) & np.isfinite(cuts["loss"])[:, None]
    fourth = decided & ~high & ~barrier
    cuts |= _cka_cut(cka, usable, fourth, given)
    large = cka > cuts["cka"][:, None]
    judged = np.isfinite(cka) & np.isfinite(cuts["cka"])[:, None]

    codes = np.zeros(loss.shape, dtype=int)
    codes[decided & high & barrier] = 1
    codes[decided & high & ~barrier] = 2
    codes[decided & ~high & barrier] = 3
    codes[fourth & judged & ~large] = 4
    codes[fourth & judged & large] = 5
    codes[collapsed] = 6
    return codes, cuts


def _cka_cut(cka: np.ndarray, usable: np.ndarray, fourth: np.ndarray, given: Thresholds) -> dict[str, np.ndarray]:
    if given.cka is not None:
        return {"cka": np.full(len(cka), float(given.cka))}
    inside = np.where(fourth, cka, math.nan)
    cut, separation = otsu(inside)
    with np.errstate(invalid="ignore"):
        above, below = inside > cut[:, None], inside <= cut[:, None]
        gap = _masked_mean(inside, above) - _masked_mean(inside, below)
        clear = gap >= LEAST_CKA_GAP
    everywhere, everywhere_separation = otsu(np.where(usable, cka, math.nan))
    return {
        "cka": np.where(clear, cut, everywhere),
        "cka_separation": np.where(clear, separation, everywhere_separation),
        "cka_clear": clear,
    }


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(mask, values, 0).sum(1) / mask.sum(1)
