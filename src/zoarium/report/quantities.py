"""What each measured quantity is called, how it is coloured, and what its map means in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Group = Literal["performance", "landscape", "similarity", "use", "other"]


@dataclass(frozen=True)
class Quantity:
    """How one quantity is shown.

    Parameters
    ----------
    name : str
        Name in the zoo's tables.
    label : str
        Title of its map.
    meaning : str
        What it is and how to read it, in one sentence.
    unit : str
        Unit after the value, with `factor` applied.
    factor : float
        Stored values are multiplied by this for people: 100 for fractions shown in per cent.
    scale : {"linear", "log", "diverging"}
        Diverging scales have their neutral colour at zero.
    scheme : str
        A Vega colour scheme, perceptually uniform.
    group : str
        Which family it belongs to; "use" marks effects of averaging, ensembling, pruning and the like.
    main : bool
        Whether its map is shown at once, not behind "more maps".
    hint : str
        How to read the colours of its map.
    """

    name: str
    label: str
    meaning: str = ""
    unit: str = ""
    factor: float = 1.0
    scale: Literal["linear", "log", "diverging"] = "linear"
    scheme: str = "viridis"
    group: Group = "other"
    main: bool = True
    hint: str = ""

    @property
    def short_unit(self) -> str:
        """The unit as a suffix: with a space before words, none before the per-cent sign's own thin space."""
        return f" {self.unit}" if self.unit else ""

    def show(self, value: float | None) -> str:
        """A stored value as text with its unit.

        Examples
        --------
        >>> quantity("test_accuracy").show(0.9712)
        '97.1 %'
        """
        if value is None or not math.isfinite(value):
            return "–"
        return number(value * self.factor) + self.short_unit


def number(value: float, digits: int = 3) -> str:
    """A number for people: a few significant digits, a true minus sign, no exponent between 0.0001 and 100,000.

    Examples
    --------
    >>> number(-0.61234), number(1234.5), number(0.00397), number(3e-7)
    ('−0.612', '1,234', '0.00397', '3e−07')
    """
    size = abs(value)
    if size and not 1e-4 <= size < 1e5:
        text = f"{value:.2g}"
    elif size >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{float(f'{value:.{digits}g}'):.7f}".rstrip("0").rstrip(".")
    return ("0" if text in ("-0", "") else text).replace("-", "−")


_POINTS: dict[str, Any] = {"unit": "pp", "scale": "diverging", "scheme": "blueorange", "group": "use",
           "hint": "Orange: a loss; blue: a gain."}  # fmt: skip
_SHARE: dict[str, Any] = {"unit": "%", "factor": 100.0}

_KNOWN = (
    Quantity("train_loss", "Train loss", "Loss on the training data after the last epoch: how far they are fitted.",
             scale="log", group="performance"),
    Quantity("test_loss", "Test loss", "Loss on unseen data: lower is better.", scale="log", group="performance",
             main=False),
    Quantity("train_accuracy", "Train accuracy", "Share of training samples classified rightly.", **_SHARE,
             group="performance", main=False),
    Quantity("test_accuracy", "Test accuracy", "Share of unseen samples classified rightly.", **_SHARE,
             hint="Brighter is better.", group="performance"),
    Quantity("train_error", "Train error", "Share of training samples classified wrongly.", **_SHARE,
             group="performance", main=False),
    Quantity("test_error", "Test error", "Share of unseen samples classified wrongly.", **_SHARE, group="performance",
             main=False),
    Quantity("generalization_gap", "Generalisation gap",
             "Train minus test accuracy: what the training data promise and unseen data do not keep.", unit="pp",
             factor=100.0, group="performance"),
    Quantity("hessian_trace", "Hessian trace",
             "Total curvature of the training loss.", hint="Dark: a flat minimum; bright: a sharp one.",
             scale="log", scheme="magma", group="landscape"),
    Quantity("hessian_top_eigenvalue", "Top Hessian eigenvalue",
             "Curvature along the sharpest direction of the training loss.", scale="log", scheme="magma",
             group="landscape"),
    Quantity("hessian_spectral_radius", "Hessian spectral radius",
             "Largest eigenvalue by magnitude: what power iteration finds.", scale="log", scheme="magma",
             group="landscape", main=False),
    Quantity("hessian_smallest_eigenvalue", "Smallest Hessian eigenvalue",
             "Below zero, the loss still falls along some direction.", scale="diverging", scheme="blueorange",
             group="landscape", main=False),
    Quantity("mode_connectivity", "Mode connectivity",
             "How far training accuracy falls along the best curve that was found between two seeds.",
             hint="Orange: a barrier; white: connected; blue: the ends are under-trained, the curve is better.",
             unit="pp", scale="diverging", scheme="blueorange", group="landscape"),
    Quantity("mode_connectivity_test", "Mode connectivity, test", "The same from the error on unseen data.", unit="pp",
             scale="diverging", scheme="blueorange", group="landscape", main=False),
    Quantity("mode_connectivity_loss", "Mode connectivity, loss", "The same from the training loss.", unit="nats",
             scale="diverging", scheme="blueorange", group="landscape", main=False),
    Quantity("linear_barrier", "Linear barrier", "How much the loss rises on the straight line between two seeds.",
             unit="nats", scheme="magma", group="landscape"),
    Quantity("aligned_barrier", "Linear barrier, aligned",
             "The same after the hidden units of one seed are permuted to match the other’s.", unit="nats",
             scheme="magma", group="landscape"),
    Quantity("linear_error_barrier", "Linear error barrier",
             "How much the error rises on the straight line between two seeds.",
             unit="pp", scheme="magma", group="landscape", main=False),
    Quantity("aligned_error_barrier", "Linear error barrier, aligned", "The same after alignment.", unit="pp",
             scheme="magma", group="landscape", main=False),
    Quantity("cka", "CKA similarity",
             "How alike the seeds’ outputs are on unseen data; 1: the same up to rotation and scale.", scheme="cividis",
             group="similarity"),
    Quantity("disagreement", "Disagreement", "Share of unseen samples on which two seeds predict different classes.",
             **_SHARE, scheme="cividis", group="similarity"),
    Quantity("probability_distance", "Probability distance", "Mean total variation between two seeds’ predictions.",
             scheme="cividis", group="similarity", main=False),
    Quantity("l2_distance", "Weight distance", "Euclidean distance between the weights of two seeds.", scheme="cividis",
             group="similarity", main=False),
    Quantity("aligned_l2_distance", "Weight distance, aligned", "The same after hidden units are matched.",
             scheme="cividis", group="similarity", main=False),
    Quantity("cosine_distance", "Weight angle", "One minus the cosine between the weights of two seeds.",
             scheme="cividis", group="similarity", main=False),
    Quantity("calibration_error", "Calibration error", "How far confidence is from accuracy, on unseen data.", **_SHARE,
             scheme="magma", group="performance", main=False),
    Quantity("plain_averaging_delta", "Averaging the seeds",
             "Test accuracy of the averaged weights minus the seeds’ own.", **_POINTS),
    Quantity("aligned_averaging_delta", "Averaging the seeds, aligned",
             "The same after hidden units are permuted to match: what is left of the loss.", **_POINTS),
    Quantity("epoch_averaging_delta", "Averaging the last epochs",
             "Test accuracy of the mean of the last checkpoints minus that of the last one.", **_POINTS),
    Quantity("ensembling_gain", "Ensembling gain",
             "Test accuracy of the seeds’ mean prediction minus their own mean accuracy.", **_POINTS),
    Quantity("ensembling_loss_gain", "Ensembling gain in loss",
             "The seeds’ mean test loss minus the loss of their mean prediction.", unit="nats", group="use",
             main=False),
    *(
        Quantity(f"pruning_delta_{p}", f"Pruning {p} %",
                 f"Test accuracy after the smallest {p} % of the weights are set to zero, minus before.", **_POINTS,
                 main=p in (80, 90))
        for p in (50, 80, 90, 95)
    ),
    Quantity("transfer_gain", "Transfer gain",
             "Accuracy on a shifted task when fine-tuned from the model, minus from new weights.", **_POINTS),
    Quantity("forgetting", "Forgetting", "Accuracy on the first task lost by fine-tuning to the shifted one.",
             unit="pp", scheme="magma", group="use"),
)  # fmt: skip

CATALOGUE = {q.name: q for q in _KNOWN}
ORDER = {name: n for n, name in enumerate(CATALOGUE)}


def quantity(name: str, values: Sequence[float] = ()) -> Quantity:
    """The entry of the catalogue, or one made from the name and the values' signs and spread.

    Examples
    --------
    >>> quantity("weight_norm", [1.0, 5000.0]).scale
    'log'
    """
    finite = [v for v in values if v is not None and math.isfinite(v)]
    known = CATALOGUE.get(name)
    if known is None:
        stem, _, layer = name.partition(":")  # cka:fc1 is CKA of the layer fc1
        if layer and stem in CATALOGUE:
            return replace(CATALOGUE[stem], name=name, label=f"{CATALOGUE[stem].label}, {layer}", main=False)
        label = name.replace("_", " ").strip() or "?"
        known = Quantity(name, label[:1].upper() + label[1:], "A measure of your own.")
        if finite and min(finite) < 0 < max(finite):
            return replace(known, scale="diverging", scheme="blueorange")
        if finite and min(finite) > 0 and max(finite) > 100 * min(finite):
            return replace(known, scale="log")
    elif known.scale == "log" and finite and min(finite) <= 0:
        return replace(known, scale="linear")  # a logarithm would hide such cells
    return known
