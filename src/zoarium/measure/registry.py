"""The contract of a measure.

A measure is a function of a stacked cohort and the data set its models were trained on::

    @measure("weight_norm", scope="model", reference="...")
    def weight_norm(cohort, data): ...
        return Estimates(cohort.flat.norm(dim=1).numpy())

scope="model"  ``f(cohort, data, **settings)``          one estimate a model
scope="pair"   ``f(cohort, pairs, data, **settings)``   one a row of ``pairs``, an (m, 2) tensor of rows of the cohort
scope="cell"   ``f(cohort, cells, data, **settings)``   one a cell; ``cells`` is a list of lists of rows of the cohort

With ``across=True`` a pair measure gets a list of cohorts instead (architectures may differ) and `pairs` counts rows
through the whole list. A measure of several quantities returns ``{quantity: Estimates}`` and names them when it
registers. Settings are keyword-only, JSON-like and have defaults. A measure changes none of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from zoarium._core.errors import MeasureError
from zoarium._core.registry import Registry

Scope = Literal["model", "pair", "cell"]

MEASURES = Registry(
    "measure",
    modules=(
        "zoarium.measure.performance",
        "zoarium.measure.perplexity",
        "zoarium.measure.pde_error",
        "zoarium.measure.hessian",
        "zoarium.measure.connectivity",
        "zoarium.measure.barrier",
        "zoarium.measure.cka",
        "zoarium.measure.distance",
        "zoarium.measure.disagreement",
        "zoarium.measure.spectra",
        "zoarium.measure.weight_norms",
        "zoarium.evaluate.effects",
    ),
    error=MeasureError,
)


def measure(
    name: str,
    *,
    scope: Scope,
    reference: str = "",
    quantities: tuple[str, ...] = (),
    across: bool = False,
    needs_data: bool = True,
    needs_checkpoints: bool = False,
    cost: str = "",
) -> Callable[[Callable], Callable]:
    """Register a measure; see the module's docstring for the three signatures.

    Parameters
    ----------
    name : str
        Name in Python, on the command line and of the table on disk.
    scope : {"model", "pair", "cell"}
    reference : str
        Source of the method.
    quantities : tuple of str, optional
        Names of the values it returns; default its own name alone.
    across : bool, default False
        A pair measure that can compare models of different architectures.
    needs_data : bool, default True
        False for a measure of weights alone; it is then called with ``data=None`` where there is none.
    needs_checkpoints : bool, default False
        True for a measure that is also given ``earlier=[Cohort, ...]``, the same rows at stored checkpoints, oldest
        first. It is no setting: a zoo without such checkpoints gives an empty list.
    cost : str
        One phrase, e.g. "one forward pass a model".
    """
    return MEASURES.register(
        name,
        reference=reference,
        scope=scope,
        quantities=quantities or (name,),
        across=across,
        needs_data=needs_data,
        needs_checkpoints=needs_checkpoints,
        cost=cost,
    )
