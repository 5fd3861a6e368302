"""Bezier curves between 126 pairs of perceptrons, all as stacked programs, against an ordinary loop, in the same run.

    python benchmarks/connectivity.py [--pairs 3] [--repeats 3] [--markdown]

Nets 64-w-10 for seven widths, six cells of three seeds each, trained on the digits; a curve for each pair of seeds: 40
epochs, batch 128, SGD with momentum, weight decay on the curve. The ordinary loop takes one pair at a time:
`functional_call` at the interpolated weights and `torch.optim.SGD`. One thread on each side (both scale alike with
single-thread workers). Every pair of a width costs the loop the same, so it runs some of the 18, its time scaled.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from dataclasses import replace

import torch
from _plain import plain_mlp, train_plainly
from torch.func import functional_call
from torch.nn import functional as F

from zoarium.data import load
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.barrier import linear_barrier
from zoarium.measure.connectivity import mode_connectivity
from zoarium.measure.paths.curves import fit_curve, learning_rate
from zoarium.zoo.cohort import Cohort

WIDTHS = (2, 4, 8, 16, 32, 64, 128)
CELLS, SEEDS, EPOCHS, BATCH, POINTS = 6, 3, 40, 128, 9
PAIRS = [(SEEDS * c + a, SEEDS * c + b) for c in range(CELLS) for a, b in itertools.combinations(range(SEEDS), 2)]
TIMES = [i / (POINTS - 1) for i in range(POINTS)]


def trained(width: int, data: Dataset) -> Cohort:
    """Six cells that differ in how long they trained, three seeds each."""
    modules = []
    for cell, seed in itertools.product(range(CELLS), range(SEEDS)):
        torch.manual_seed(seed + SEEDS * cell)
        modules.append(plain_mlp(width))
        train_plainly(modules[-1], data.train.x, data.train.y, batch_size=64, epochs=cell + 1, seed=seed)
    return Cohort.from_modules(modules)


def plain_curve(cohort: Cohort, pair: tuple[int, int], data: Dataset, draw: torch.Generator) -> list[float]:
    """One pair; the mean training loss at every point of the curve."""
    (a, b), module, x, y = pair, cohort.module, data.train.x, data.train.y
    ends = [cohort.state(a), cohort.state(b)]
    bend = {k: ((ends[0][k] + ends[1][k]) / 2).requires_grad_() for k in ends[0]}

    def curve(t: float) -> dict[str, torch.Tensor]:
        return {k: (1 - t) ** 2 * ends[0][k] + 2 * t * (1 - t) * bend[k] + t**2 * ends[1][k] for k in bend}

    optimizer = torch.optim.SGD(bend.values(), lr=0.1, momentum=0.9)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = learning_rate(epoch, EPOCHS, 0.1)
        for rows in torch.randperm(len(x), generator=draw).split(BATCH):
            phi = curve(float(torch.rand((), generator=draw)))
            loss = F.cross_entropy(functional_call(module, phi, (x[rows],)), y[rows])
            loss = loss + 5e-4 / 2 * torch.stack([p.square().sum() for p in phi.values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return [F.cross_entropy(functional_call(module, curve(t), (x,)), y).item() for t in TIMES]


def main() -> None:
    """Time both sides, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="pairs a width that the ordinary loop runs, of 18")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print a Markdown section")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load("digits")
    flat = (Split(part.x.flatten(1), part.y) for part in (data.train, data.test))
    data = replace(data, **dict(zip(("train", "test"), flat, strict=True)))
    cohorts = {width: trained(width, data) for width in WIDTHS}
    pairs = torch.tensor(PAIRS)
    few = PAIRS[:: max(1, len(PAIRS) // args.pairs)][: args.pairs]
    fit_curve(cohorts[2], few, data, epochs=1)  # warm up
    plain_curve(cohorts[2], few[0], data, torch.Generator().manual_seed(0))

    ours: dict[int, list[float]] = {w: [] for w in WIDTHS}
    loop: dict[int, list[float]] = {w: [] for w in WIDTHS}
    gaps = []
    for repeat in range(args.repeats):
        draw = torch.Generator().manual_seed(repeat)
        for width, cohort in cohorts.items():
            start = time.perf_counter()
            curves = fit_curve(cohort, pairs, data, seed=repeat)
            mine = curves.points(data, TIMES).loss.mean(2)
            ours[width].append(time.perf_counter() - start)
            start = time.perf_counter()
            theirs = [plain_curve(cohort, pair, data, draw) for pair in few]
            loop[width].append((time.perf_counter() - start) * len(PAIRS) / len(few))
            half = POINTS // 2
            gaps += [mine[PAIRS.index(p), half].item() - v[half] for p, v in zip(few, theirs, strict=True)]

    rows = []
    for width in (*WIDTHS, None):
        mine, theirs = (
            [sum(side[w][i] for w in (WIDTHS if width is None else (width,))) for i in range(args.repeats)]
            for side in (ours, loop)
        )
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        # two products forward; backward three, as inputs need no gradient
        flops = sum(
            len(PAIRS) * EPOCHS * len(data.train) * (4 * 64 + 6 * 10) * w
            for w in (WIDTHS if width is None else (width,))
        )
        rows.append(
            (
                "all" if width is None else str(width),
                f"{statistics.median(mine):.2f}",
                f"{statistics.median(theirs):.1f}",
                f"{statistics.median(ratios):.0f}x ({min(ratios):.0f} to {max(ratios):.0f})",
                f"{flops / statistics.median(mine) / 1e9:.0f}",
            )
        )
    start = time.perf_counter()
    for cohort in cohorts.values():
        mode_connectivity(cohort, pairs, data)
    middle = time.perf_counter()
    for cohort in cohorts.values():
        linear_barrier(cohort, pairs, data)
    end = time.perf_counter()
    peak = statistics.median(gemm_rate() for _ in range(5))

    header = ("width", "zoarium, s", "ordinary loop, s", "speed", "GFLOP/s reached")
    notes = (
        f"{len(PAIRS)} pairs a width, {len(WIDTHS) * len(PAIRS)} in all, {EPOCHS} epochs of {len(data.train)} digits "
        f"at batch {BATCH}, {POINTS} points evaluated; one thread a side, {args.repeats} repeats (median, range). The "
        f"loop ran {len(few)} pairs a width, scaled. Loss midway, ours minus the loop's (each with its own draws): "
        f"{statistics.mean(gaps):+.4f} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.4f}. A product of two 1024 x 1024 "
        f"matrices ran at {peak:.0f} GFLOP/s. The whole measure, test split included: {middle - start:.2f} s; linear "
        f"barriers of the same pairs on 25 points, plain and aligned: {end - middle:.2f} s."
    )
    if args.markdown:
        print(f"## Mode connectivity\n\n{notes}\n")
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
        print(f"\nPython {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
        return
    for row in (header, *rows):
        print("  ".join(cell.rjust(18) for cell in row))
    print(notes)


def gemm_rate() -> float:
    """GFLOP/s of a large matrix product, now."""
    a = torch.randn(1024, 1024)
    a @ a
    start = time.perf_counter()
    a @ a
    return 2 * 1024**3 / (time.perf_counter() - start) / 1e9


if __name__ == "__main__":
    main()
