"""Hessian trace and top eigenvalue of 100 stacked perceptrons against a PyHessian loop, timed in the same run.

    python benchmarks/hessian.py [--models 100] [--repeats 3] [--markdown]

Nets 64-32-10, briefly trained on the digits at different rates; curvature of the mean cross-entropy on 640 training
samples, CPU seconds of one thread on each side (both scale alike with single-thread workers). PyHessian runs as the zoo
of the paper ran it: power iteration and Hutchinson's estimator with its own stopping rule. Errors are against the exact
trace and a float64 Lanczos run to 1e-9, which are themselves compared with dense matrices of a few of the models.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import sys
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from zoarium.data import load
from zoarium.data.dataset import Dataset
from zoarium.measure.curvature.products import products_of
from zoarium.measure.hessian import hessian_top_eigenvalue, hessian_trace
from zoarium.zoo.cohort import Cohort

WIDTH, SAMPLES, DENSE = 32, 640, 4


@dataclass
class Run:
    """Seconds, values and products of one side; values are (models,)."""

    seconds: float
    trace: np.ndarray
    top: np.ndarray
    trace_products: np.ndarray
    top_products: np.ndarray
    trace_seconds: float


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def trained(count: int, data: Dataset) -> Cohort:
    """Models that differ in start, rate (0.01 to 0.3) and therefore in how far they got in 5 epochs."""
    torch.manual_seed(0)
    cohort = Cohort.from_modules([perceptron() for _ in range(count)])
    params = {k: v.clone().requires_grad_() for k, v in cohort.params.items()}
    rates = torch.logspace(-2, -0.5, count)
    x, y = data.train.x, data.train.y
    for _ in range(5):
        for rows in torch.randperm(len(x)).split(32):
            out = cohort.net(params, x[rows])
            loss = functional.cross_entropy(out.flatten(0, 1), y[rows].repeat(count), reduction="sum") / len(rows)
            gradients = torch.autograd.grad(loss, list(params.values()))
            with torch.no_grad():
                for p, g in zip(params.values(), gradients, strict=True):
                    p -= rates.view(-1, *[1] * (p.ndim - 1)) * g
    return cohort.with_params({k: v.detach() for k, v in params.items()})


def ours(cohort: Cohort, data: Dataset, seed: int, tol: float = 0.03, **settings: object) -> Run:
    start = time.process_time()
    trace = hessian_trace(cohort, data, samples=SAMPLES, seed=seed, **settings)  # type: ignore[arg-type]
    middle = time.process_time()
    top = hessian_top_eigenvalue(cohort, data, samples=SAMPLES, seed=seed, tol=tol)["hessian_top_eigenvalue"]
    end = time.process_time()
    return Run(end - start, trace.value, top.value, trace.products, top.products, middle - start)


def peer(cohort: Cohort, data: Dataset, seed: int) -> Run:
    """One model at a time, as PyHessian's manual has it."""
    import pyhessian

    inside = sys.modules["pyhessian.hessian"]  # the package hides it behind the class of that name

    calls = 0
    product = inside.hessian_vector_product

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        return product(*args)

    inside.hessian_vector_product = counted
    part = data.train.sample(SAMPLES, "hessian", seed)
    x, y = part.x, part.y
    torch.manual_seed(seed)
    seconds = trace_seconds = 0.0
    traces, tops, trace_products, top_products = [], [], [], []
    for row in range(len(cohort)):
        module = perceptron()
        module.load_state_dict(cohort.state(row))
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.process_time()
            hessian = pyhessian.hessian(module, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
            calls = 0
            tops.append(hessian.eigenvalues()[0][0])
            top_products.append(calls)
            calls, middle = 0, time.process_time()
            traces.append(float(np.mean(hessian.trace())))
            trace_products.append(calls)
            end = time.process_time()
        seconds, trace_seconds = seconds + end - start, trace_seconds + end - middle
    inside.hessian_vector_product = product
    return Run(seconds, *(np.array(v) for v in (traces, tops, trace_products, top_products)), trace_seconds)


def exact(cohort: Cohort, data: Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Traces and tops to compare with."""
    double = cohort.to(torch.float64)
    trace = hessian_trace(double, data, samples=SAMPLES, method="exact", seed=seed)
    top = hessian_top_eigenvalue(double, data, samples=SAMPLES, tol=1e-9, seed=seed)["hessian_top_eigenvalue"]
    return trace.value, top.value


def dense_check(cohort: Cohort, data: Dataset, seed: int, trace: np.ndarray, top: np.ndarray) -> float:
    """Largest relative difference of the references from dense float64 matrices of the first few models."""
    part = data.train.sample(SAMPLES, "hessian", seed)
    few = cohort.select(range(min(DENSE, len(cohort)))).to(torch.float64)
    products = products_of(few, part.x.double(), part.y, "classification")
    p = products.size
    matrix = torch.empty(len(few), p, p, dtype=torch.float64)
    for i, unit in enumerate(torch.eye(p, dtype=torch.float64)):
        matrix[:, i] = products(unit.expand(len(few), -1))
    off_trace = matrix.diagonal(dim1=1, dim2=2).sum(1).numpy() / trace[: len(few)] - 1
    off_top = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[:, -1].numpy() / top[: len(few)] - 1
    return float(np.abs([off_trace, off_top]).max())


def main() -> None:
    """Time all routes, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print a Markdown section")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load("digits")
    cohort = trained(args.models, data)
    routes = {
        "zoarium": lambda seed: ours(cohort, data, seed),
        "zoarium, top to 10 %": lambda seed: ours(cohort, data, seed, tol=0.1),
        "zoarium, Hutch++ to 2 %": lambda seed: ours(cohort, data, seed, method="hutchpp"),
        "PyHessian 0.1 loop": lambda seed: peer(cohort, data, seed),
    }
    for name, route in routes.items():  # warm up on what costs little
        if name != "PyHessian 0.1 loop":
            route(0)
    peer(cohort.select([0]), data, 0)
    runs: dict[str, list[Run]] = {name: [] for name in routes}
    truth = []
    for seed in range(args.repeats):
        for name, route in routes.items():
            runs[name].append(route(seed))
        truth.append(exact(cohort, data, seed))
    off = dense_check(cohort, data, 0, *truth[0])

    def rms(name: str, what: str) -> float:
        which = ("trace", "top").index(what)
        errors = [getattr(run, what) / truth[i][which] - 1 for i, run in enumerate(runs[name])]
        return float(np.sqrt(np.mean(np.square(errors))))

    peers = runs["PyHessian 0.1 loop"]
    rows = []
    for name, mine in runs.items():
        ratios = [b.seconds / a.seconds for a, b in zip(mine, peers, strict=True)]
        spent = np.mean([(run.trace_products.mean(), run.top_products.mean()) for run in mine], axis=0)
        rows.append(
            (
                name,
                f"{statistics.median(r.seconds for r in mine):.2f}",
                f"{statistics.median(ratios):.1f}x ({min(ratios):.1f}–{max(ratios):.1f})",
                f"{spent[0]:.1f} + {spent[1]:.1f}",
                f"{100 * rms(name, 'trace'):.2g} %",
                f"{100 * rms(name, 'top'):.2g} %",
            )
        )
    header = ("route", "CPU seconds", "speed", "products a model (trace + top)", "rms error of the trace", "of the top")
    if args.markdown:
        print("## Hessian trace and top eigenvalue\n")
        print(
            f"{args.models} perceptrons 64-{WIDTH}-10 (2,410 parameters) trained on the digits, {SAMPLES} samples, CPU"
        )
        print(
            f"seconds of one thread a side, {args.repeats} repeats (median, range). References agree with dense float64"
        )
        print(f"matrices of {min(DENSE, args.models)} models to {off:.0e}.\n")
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
        print(f"\nPython {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
        return
    for row in (header, *rows):
        print("  ".join(cell.ljust(size) for cell, size in zip(row, (26, 12, 22, 32, 24, 10), strict=True)))
    print(f"references against dense matrices of {min(DENSE, args.models)} models: {off:.1e}")


if __name__ == "__main__":
    main()
