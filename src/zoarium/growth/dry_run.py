"""What growing a grid would do: its programs, the route of each and the reason, without training anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import GridError
from zoarium.growth.grid import Grid
from zoarium.growth.grow import _check_nets, _programs, training_data
from zoarium.growth.presets import Preset, preset

if TYPE_CHECKING:
    from torch import nn

COLUMNS = {
    "program": pl.String, "net": pl.String, "models": pl.Int64, "route": pl.String, "seconds": pl.Float64,
    "mib": pl.Int64, "reason": pl.String,
}  # fmt: skip


def dry_run(
    grid: Grid | Preset | str | Callable[..., nn.Module],
    *,
    memory: int | str = "2GB",
    cores: int | None = None,
    **axes: Any,
) -> pl.DataFrame:
    """The programs :func:`~zoarium.growth.grow.grow` would train, longest first.

    Parameters
    ----------
    grid : Grid, Preset, str or callable
        As for ``grow``.
    memory : int or str, default "2GB"
        Budget of all workers; a smaller one cuts programs.
    cores : int, optional
        Cores the work is cut for; default this machine's.
    **axes
        Axes of the grid, if `grid` is a net.

    Returns
    -------
    polars.DataFrame
        A row a program: `program` (its key), `net`, `models`, `route` ("chain", "conv": backward passes written out;
        "vmap": autograd over the stacked models; "loop": one after the other), `seconds` (estimated for one core of a
        recent server, to compare programs by), `mib` (estimated peak memory) and `reason` (why these models run
        together and this way).

    Raises
    ------
    GridError, NetError, DataError
        What ``grow`` would raise before it trains.

    Examples
    --------
    >>> import zoarium as za
    >>> from zoarium.growth import dry_run
    >>> programs = dry_run("cnn", width=[4], seed=range(6), epochs=1, data="digits")
    >>> set(programs["route"]), programs["models"].sum()
    ({'conv'}, 6)
    """
    if isinstance(grid, str) and grid.startswith("preset:"):
        grid = preset(grid)
    if isinstance(grid, Preset):
        grid = grid.grid
    if not isinstance(grid, Grid):
        grid = Grid(grid, **axes)
    elif axes:
        raise GridError(f"give {', '.join(axes)} to the Grid, not to dry_run().")
    configs = grid.expand()
    _, data = training_data(grid, configs)
    _check_nets(grid, configs, data)
    rows = [
        (p.key, configs[p.rows[0]].net, len(p.rows), p.route, p.cost, p.bytes >> 20, p.reason)
        for p in _programs(grid, configs, data, memory, cores)
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")
