"""Which axis of a zoo is load and which is temperature, in the physical sense.

Load is data per parameter, as far as the net notices the data; temperature is the noise of training, about lr / batch
for stochastic gradient descent. Martin & Mahoney, "Rethinking generalization requires revisiting old ideas", 2017;
Yang et al., "Taxonomizing local versus global structure in neural network loss landscapes", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from zoarium._core.errors import MeasureError, unknown_name

# axis: what a larger value does to the quantity (+ raises it, - lowers it), and why
LOAD = {
    "width": ("-", "small width is high load: more data per parameter"),
    "model_dim": ("-", "a small model is high load: more data per parameter"),
    "depth": ("-", "a shallow net is high load: more data per parameter"),
    "data_fraction": ("+", "a large share of the data is high load: more data per parameter"),
    "label_noise": ("-", "much label noise is low effective load: fewer labels that can be learnt from the input"),
    "beta": ("+", "a large coefficient is high load: a harder problem for the same net"),
}
TEMPERATURE = {
    "batch_size": ("-", "a small batch is hot: temperature goes as lr / batch"),
    "lr": ("+", "a large learning rate is hot: temperature goes as lr / batch"),
    "weight_decay": ("+", "large weight decay is hot: small weights take relatively larger steps"),
    "momentum": ("+", "large momentum is hot: the effective learning rate is lr / (1 - momentum)"),
    "epochs": ("-", "few epochs are hot: training stops before it cools"),
    "steps": ("-", "few steps are hot: training stops before it cools"),
}


def describe_axis(axis: str) -> str:
    """One phrase on the physical meaning of an axis: its role, and which end is which.

    >>> describe_axis("width")
    'load (small width is high load: more data per parameter)'
    >>> describe_axis("batch_size")
    'temperature (a small batch is hot: temperature goes as lr / batch)'
    """
    for role, known in (("load", LOAD), ("temperature", TEMPERATURE)):
        if axis in known:
            return f"{role} ({known[axis][1]})"
    return "an axis without a known physical direction; read it off the map"


def axis_roles(
    axes: Sequence[str], load: str | None = None, temperature: str | None = None
) -> tuple[str | None, str | None]:
    """The axes of load and temperature: those named, or else the first known one of each kind.

    Parameters
    ----------
    axes : sequence of str
        Axes that vary in the zoo, without the seed.
    load, temperature : str, optional

    Returns
    -------
    tuple of str or None
        One of them is None where no axis can play the part.

    Raises
    ------
    MeasureError
        For a name that is no axis, one axis for both, or when no axis has a known part; it lists the axes.
    """
    for role, name in (("load", load), ("temperature", temperature)):
        if name is not None and name not in axes:
            raise MeasureError(unknown_name(f"axis for {role}", name, axes))
    if load is not None and load == temperature:
        raise MeasureError(f"axis {load!r} cannot be both load and temperature; axes that vary: {', '.join(axes)}.")
    load = load or next((axis for axis in LOAD if axis in axes and axis != temperature), None)
    temperature = temperature or next((axis for axis in TEMPERATURE if axis in axes and axis != load), None)
    if load is None and temperature is None:
        raise MeasureError(
            f"cannot tell load from temperature; axes that vary: {', '.join(axes) or 'none'}. "
            "Name them: zoo.phases(load=..., temperature=...)."
        )
    return load, temperature


def equal_epochs_caveat(models: pl.DataFrame) -> str:
    """A sentence where batch sizes differ at equal epochs, and so in the number of steps; else an empty string.

    >>> equal_epochs_caveat(pl.DataFrame({"batch_size": [8, 256], "epochs": [30, 30], "steps": [None, None]}))
    'Batch sizes from 8 to 256 were trained for equal epochs, so the coldest took 32 times fewer steps than ...'
    """
    if not {"batch_size", "epochs"} <= set(models.columns):
        return ""
    if "steps" in models.columns:
        models = models.filter(pl.col("steps").is_null())
    spread = models.group_by("epochs").agg(low=pl.col("batch_size").min(), high=pl.col("batch_size").max())
    spread = spread.filter(pl.col("low") < pl.col("high")).sort(pl.col("high") / pl.col("low"), "epochs")
    if not len(spread):
        return ""
    _, low, high = spread.row(-1)
    return (
        f"Batch sizes from {low} to {high} were trained for equal epochs, so the coldest took {high / low:.3g} times "
        "fewer steps than the hottest: cold also means trained less. Grow with steps=... to tell the two apart."
    )
