"""Growing a population against training its models one at a time, timed in the same run.

    python benchmarks/growth.py [--quick] [--repeats 3] [--only grid|cnn|scale] [--markdown benchmarks/RESULTS.md]

Both routes use one single-thread worker process a core. `grid` is the 126-model grid of card 01 (digits, 1,000
training samples, widths 2..128, batches 8..256, 3 seeds, 30 epochs); `cnn` trains convolutional and residual nets on
8x8 and 28x28 inputs and reports the share of the measured matrix-product peak; `scale` grows 126, 1,260 and 12,600
models for 3 epochs.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
from pathlib import Path

import torch
from _plain import accuracy, train_plainly
from torch.nn import functional as F

from zoarium._core.parallel import available_cores, run_tasks
from zoarium.data.dataset import Dataset, Split
from zoarium.nets import build
from zoarium.train import data_key, plan, train_program
from zoarium.train.architecture import describe
from zoarium.zoo.config import ModelConfig, Training

WIDTHS, BATCHES = (2, 4, 8, 16, 32, 64, 128), (8, 16, 32, 64, 128, 256)
QUICK_WIDTHS = (2, 16, 128)  # of which the plain route is timed with --quick


def digits(side: int = 8, *, flat: bool = True) -> Dataset:
    """Return the 1,797 digits, 1,000 for training; larger sides are interpolated (the arithmetic is what is timed)."""
    from sklearn.datasets import load_digits

    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x[order] / 16).float().view(-1, 1, 8, 8), y[order]
    if side != 8:
        x = F.interpolate(x, size=(side, side), mode="bilinear")
    x = x.flatten(1) if flat else x
    return Dataset("digits", Split(x[:1000], y[:1000]), Split(x[1000:], y[1000:]), "classification", 10)


def grid(seeds: int = 3, epochs: int = 30) -> list[ModelConfig]:
    """Return the grid of card 01."""
    return [
        ModelConfig(net="mlp", net_params={"width": w}, seed=s, training=Training(batch_size=b, epochs=epochs))
        for w in WIDTHS
        for b in BATCHES
        for s in range(seeds)
    ]


def grow(configs: list[ModelConfig], dataset: Dataset, *, history: str, memory: int = 2 << 30) -> tuple[float, list]:
    """Seconds for planning and training, and [(row, test accuracy)]."""
    data = {data_key(config): dataset for config in configs}

    def one(program, worker):
        result = train_program(program, configs, data, history=history, on_checkpoint=lambda part, checkpoint: None)
        last = result.history["epoch"] == result.history["epoch"].max()
        return list(zip(result.history["row"][last], result.history["test_accuracy"][last], strict=True))

    began = time.perf_counter()
    programs = plan(configs, data, memory=memory, workers=available_cores())
    rows = [row for _, part in run_tasks(one, programs) for row in part]
    return time.perf_counter() - began, rows


def grow_plainly(configs: list[ModelConfig], dataset: Dataset) -> tuple[float, list]:
    """Return the same with ordinary PyTorch; no evaluation but the last."""
    x, y, test = dataset.train.x, dataset.train.y, dataset.test

    def one(config, worker):
        shape = dataset.in_shape  # the same initial weights as ours
        module = build(config.net, config.net_params, in_shape=shape, n_outputs=10, seed=config.seed).train()
        training = config.training
        train_plainly(module, x, y, batch_size=training.batch_size, epochs=training.epochs, seed=config.seed)
        return accuracy(module, test.x, test.y)

    ordered = sorted(configs, key=lambda c: (c.training.batch_size, -c.net_params["width"]))  # longest first
    began = time.perf_counter()
    rows = list(run_tasks(one, ordered))
    return time.perf_counter() - began, rows


def gemm_peak() -> float:
    """Floating-point operations a second of a large product on one thread."""
    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 1e9
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare_grid(repeats: int, quick: bool) -> list[str]:
    """Ratio on the grid of card 01."""
    configs, dataset = grid(), digits()
    sample = [c for c in configs if not quick or (c.net_params["width"] in QUICK_WIDTHS and c.seed == 0)]
    scale, sampled = len(configs) / len(sample), {configs.index(c) for c in sample}
    rows = {"plain": [], "every": [], "last": []}
    accuracies = {}
    grow(configs[:1], dataset, history="last")  # warm up
    for _ in range(repeats):
        seconds, right = grow_plainly(sample, dataset)
        rows["plain"].append(seconds * scale)
        accuracies["plain"] = statistics.mean(a for _, a in right)
        for history in ("every", "last"):
            seconds, right = grow(configs, dataset, history=history)
            rows[history].append(seconds)
            accuracies[history] = statistics.mean(a for row, a in right if row in sampled)
    lines = [
        "### 126 MLPs on digits, 30 epochs",
        "",
        "| route | seconds | times faster | mean test accuracy of the models both trained |",
        "|---|---|---|---|",
    ]
    names = {
        "plain": f"plain PyTorch{f', {len(sample)} of {len(configs)} models scaled up' if quick else ''}",
        "every": "zoarium, both splits evaluated every epoch",
        "last": "zoarium, evaluated at the end as the plain route",
    }
    for key, name in names.items():
        ratios = [p / v for p, v in zip(rows["plain"], rows[key], strict=True)]
        lines.append(f"| {name} | {spread(rows[key])} | {spread(ratios)} | {accuracies[key]:.3f} |")
    flops = sum(6 * (75 * c.net_params["width"] + 10) * 1000 * c.training.epochs for c in configs)
    share = flops / statistics.median(rows["last"]) / (gemm_peak() * available_cores())
    lines += ["", f"Arithmetic: {flops / 1e9:.0f} GFLOP, {share:.0%} of the measured matrix-product peak.", ""]
    return lines


CONVOLUTIONAL = (
    ("cnn", 8, 8), ("cnn", 8, 32), ("cnn", 28, 8), ("cnn", 28, 32), ("resnet8", 8, 16), ("resnet8", 28, 8),
)  # fmt: skip


def compare_cnns(repeats: int) -> list[str]:
    """Ratio and share of peak for convolutional nets."""
    peak = gemm_peak() * available_cores()
    lines = [
        "### Convolutional nets, 12 models (3 seeds x batches 16 to 128), 1 epoch",
        "",
        "Ours evaluates both splits, the plain loop the test split.",
        "",
        "| net | inputs | width | plain, s | zoarium, s | times faster | share of GEMM peak | models at a time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for net, side, width in CONVOLUTIONAL:
        dataset = digits(side, flat=False)
        configs = [
            ModelConfig(net=net, net_params={"width": width}, seed=s, training=Training(batch_size=b, epochs=1))
            for b in (16, 32, 64, 128)
            for s in range(3)
        ]
        plain, ours = [], []
        for _ in range(repeats):
            plain.append(grow_plainly(configs, dataset)[0])
            ours.append(grow(configs, dataset, history="last")[0])
        one = describe(configs[0], dataset)
        programs = plan(configs, {data_key(c): dataset for c in configs}, workers=available_cores())
        words = one.hand.words(len(programs[0].rows), 16) if one.hand else one.reason
        work = 6 * one.work * 1000 * len(configs)
        ratio = spread([p / o for p, o in zip(plain, ours, strict=True)])
        lines.append(
            f"| {net} | {side}x{side} | {width} | {spread(plain)} | {spread(ours)} | {ratio} "
            f"| {work / statistics.median(ours) / peak:.0%} | {words.partition(' at a time')[0]} |"
        )
    return [*lines, ""]


def compare_scales() -> list[str]:
    """Cost a model and memory as the population grows."""
    dataset, budget = digits(), 1 << 30
    lines = [
        f"### Cost a model from 126 to 12,600 (3 epochs, budget {budget >> 20} MiB for all workers)",
        "",
        "| models | seconds | ms a model | largest worker, MiB | parent, MiB |",
        "|---|---|---|---|---|",
    ]
    for seeds in (3, 30, 300):
        configs = grid(seeds, epochs=3)
        seconds, rows = grow(configs, dataset, history="last", memory=budget)
        worker, parent = (
            resource.getrusage(w).ru_maxrss >> 10 for w in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
        )
        each = 1000 * seconds / len(rows)
        lines.append(f"| {len(rows):,} | {seconds:.1f} | {each:.2f} | {worker} | {parent} |")
    return [*lines, ""]


def main() -> None:
    """Run the benchmarks asked for and print (or append) a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="time a seventh of the plain route and scale up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["grid", "cnn", "scale"], action="append")
    parser.add_argument("--markdown", type=Path, help="append the section to this file")
    options = parser.parse_args()
    wanted = options.only or ["grid", "cnn", "scale"]
    lines = [
        "## Growth",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {available_cores()} single-thread workers; "
        f"matrix-product peak {gemm_peak() / 1e9:.0f} GFLOP/s a core; median (range) of {options.repeats} repeats.",
        "",
    ]
    if "grid" in wanted:
        lines += compare_grid(options.repeats, options.quick)
    if "cnn" in wanted:
        lines += compare_cnns(options.repeats)
    if "scale" in wanted:
        lines += compare_scales()
    print("\n".join(lines))
    if options.markdown:
        with options.markdown.open("a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
