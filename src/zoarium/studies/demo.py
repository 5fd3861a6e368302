"""The main job end to end: grow 126 digit networks, measure them, label phases, put them to use, write a report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import StoreError
from zoarium._core.parallel import check_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from zoarium.growth import Grid
    from zoarium.report import Finding
    from zoarium.zoo import Zoo

MEASURES = ("performance", "hessian_trace", "hessian_top_eigenvalue", "mode_connectivity", "linear_barrier", "cka")
EFFECTS = ("seed_averaging", "ensembling", "pruning")


def demo_grid() -> Grid:
    """The 126 models of the demo: 7 widths x 6 batch sizes x 3 seeds on handwritten digits."""
    from zoarium.growth import Grid

    return Grid(
        net="mlp",
        width=[2, 4, 8, 16, 32, 64, 128],
        batch_size=[8, 16, 32, 64, 128, 256],
        seed=range(3),
        data="digits",
        epochs=30,
        lr=0.05,
    )


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    zoo: Zoo
    phases: pl.DataFrame
    findings: list[Finding]
    report: Path
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {
            "zoo": str(self.zoo.path),
            "models": len(self.zoo),
            "phases": self.phases.to_dicts(),
            "findings": [str(finding) for finding in self.findings],
            "report": str(self.report),
            "seconds": self.seconds,
        }


def run_demo(
    out: str | Path,
    *,
    grid: Grid | None = None,
    overwrite: bool = False,
    backend: str = "local",
    address: str | None = None,
    workers: int | None = None,
    on_progress: Callable[[float, float, str], None] = lambda done, total, note: None,
) -> DemoResult:
    """Grow, measure, label, use and report.

    Parameters
    ----------
    out : path
        Folder of the zoo; the report is written into it. A zoo that is there is finished, not grown again.
    grid : Grid, optional
        Another grid than :func:`demo_grid`.
    overwrite : bool, default False
        Start anew if `out` holds a zoo. A folder that is no zoo is never touched.
    backend, address, workers
        Where the work is done; see :func:`zoarium.growth.grow`.
    on_progress : callable, optional
        Called with (done, total, note).

    Raises
    ------
    StoreError
        If `out` is a folder with other things in it.
    """
    from zoarium.growth import grow
    from zoarium.measure.phases import zoo_phase_result
    from zoarium.report import collect, findings, warm_up, write_report

    out = Path(out)
    check_backend(backend, address)  # before anything is overwritten
    if overwrite and out.exists() and any(out.iterdir()):
        if not (out / "zoo.json").exists():
            raise StoreError(f"{out} is not a zoo, so it is not overwritten; choose another folder with -o.")
        shutil.rmtree(out)
    warm_up()
    where: dict[str, Any] = {"backend": backend, "address": address, "workers": workers}
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with timed("grow"):
        zoo = grow(grid or demo_grid(), out, **where, on_progress=on_progress)
    with timed("measure"):
        zoo.measure(*MEASURES, *EFFECTS, **where, on_progress=lambda name, done, total: on_progress(done, total, name))
    with timed("phases"):
        phases = zoo_phase_result(zoo)
    with timed("report"):
        data = collect(zoo, phases=phases)
        report = write_report(data, out / "reports" / "report.html")
        said = findings(data)
    seconds["in all"] = sum(seconds.values())
    return DemoResult(zoo, phases.table, said, report, seconds)
