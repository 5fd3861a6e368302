"""Growing small transformers against training them one at a time, timed in the same run.

    python benchmarks/transformers.py [--quick] [--repeats 3] [--markdown benchmarks/RESULTS.md]

Twelve models a row that differ in their seed, three epochs, one single-thread worker process a core on every side. The
plain route trains the same modules one after the other with autograd, once as they are and once with PyTorch's fused
attention (`scaled_dot_product_attention`); the ratio is against the faster of the two in the same repeat. Images are
the digits (larger ones interpolated), sequences are random tokens: the arithmetic is what is timed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from _plain import train_plainly
from torch.nn import functional as F

from growth import digits, gemm_peak, grow, spread
from zoarium._core.parallel import available_cores, run_tasks
from zoarium.data.dataset import Dataset, Split
from zoarium.nets import build, gpt, vit
from zoarium.nets.transformer import transformer_of
from zoarium.train.cost import transformer_multiplications
from zoarium.zoo.config import ModelConfig, Training

MODELS, EPOCHS = 12, 3


@dataclass(frozen=True)
class Case:
    """One row: a net, its data and its batch size."""

    net: str
    params: dict
    data: Dataset
    batch: int

    def __str__(self) -> str:
        values = " ".join(f"{key} {value}" for key, value in self.params.items())
        shape = " x ".join(map(str, self.data.in_shape))
        return f"{self.net} {values}, inputs {shape}, {self.data.n_outputs} outputs, batch {self.batch}"


def tokens(length: int, vocabulary: int, count: int) -> Dataset:
    """Return random sequences."""
    text = torch.randint(vocabulary, (count + 16, length + 1), generator=torch.Generator().manual_seed(0))
    train, test = (Split(part[:, :-1].clone(), part[:, 1:].clone()) for part in (text[:count], text[count:]))
    return Dataset("tokens", train, test, "language", vocabulary)


def cases(quick: bool) -> list[Case]:
    """Return the rows, the small nets alone with `quick`."""
    small, large = digits(8, flat=False), digits(28, flat=False)
    rows = [
        Case("vit", {"patch": 2, "width": 16, "depth": 2, "heads": 4}, small, 64),
        Case("vit", {"patch": 2, "width": 32, "depth": 2, "heads": 4}, small, 64),
        Case("gpt2", {"model_dim": 16, "n_layers": 2, "n_heads": 4}, tokens(32, 64, 1024), 16),
        Case("gpt2", {"model_dim": 32, "n_layers": 2, "n_heads": 4}, tokens(32, 64, 1024), 16),
    ]
    if not quick:
        rows += [
            Case("vit", {"patch": 2, "width": 64, "depth": 4, "heads": 4}, small, 64),
            Case("vit", {"patch": 7, "width": 64, "depth": 4, "heads": 4}, large, 64),
            Case("gpt2", {"model_dim": 64, "n_layers": 2, "n_heads": 4}, tokens(64, 256, 256), 16),
            Case("gpt2", {"model_dim": 128, "n_layers": 4, "n_heads": 4}, tokens(64, 256, 256), 16),
        ]
    return rows


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let the modules use PyTorch's fused attention."""

    def attend(query, key, value, *, causal: bool = False):
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)

    own = vit.attend
    vit.attend = gpt.attend = attend
    try:
        yield
    finally:
        vit.attend = gpt.attend = own


def plain(case: Case, configs: list[ModelConfig]) -> float:
    """Seconds of the plain route."""
    train = case.data.train

    def one(config, worker):
        shape, outputs = case.data.in_shape, case.data.n_outputs
        module = build(config.net, config.net_params, in_shape=shape, n_outputs=outputs, seed=config.seed).train()
        train_plainly(module, train.x, train.y, batch_size=case.batch, epochs=EPOCHS, seed=config.seed)
        with torch.no_grad():
            for split in (train, case.data.test):
                F.cross_entropy(module.eval()(split.x).flatten(0, -2), split.y.flatten())

    began = time.perf_counter()
    list(run_tasks(one, configs))
    return time.perf_counter() - began


def compare(case: Case, repeats: int, peak: float) -> str:
    """Return a line of the table."""
    configs = [
        ModelConfig(
            net=case.net, net_params=case.params, seed=s, training=Training(batch_size=case.batch, epochs=EPOCHS)
        )
        for s in range(MODELS)
    ]
    written, fused, ours = [], [], []
    grow(configs[:1], case.data, history="last")  # warm up
    for _ in range(repeats):
        written.append(plain(case, configs))
        with fused_attention():
            fused.append(plain(case, configs))
        ours.append(grow(configs, case.data, history="last")[0])
    form = transformer_of(build(case.net, case.params, in_shape=case.data.in_shape, n_outputs=case.data.n_outputs))
    assert form is not None
    length = form.tokens if form.kind == "vit" else case.data.in_shape[0]
    work = 6 * transformer_multiplications(form, length) * len(case.data.train) * MODELS * EPOCHS
    ratio = [min(a, b) / c for a, b, c in zip(written, fused, ours, strict=True)]
    share = work / statistics.median(ours) / peak
    return f"| {case} | {spread(written)} | {spread(fused)} | {spread(ours)} | {spread(ratio)} | {share:.0%} |"


def main() -> None:
    """Run the benchmark and print (or append) a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the four smallest nets alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="append the section to this file")
    options = parser.parse_args()
    peak = gemm_peak() * available_cores()
    lines = [
        "## Transformers",
        "",
        f"{MODELS} models a row, {EPOCHS} epochs; torch {torch.__version__}, Python {platform.python_version()}, "
        f"{available_cores()} single-thread workers; matrix-product peak {peak / available_cores() / 1e9:.0f} GFLOP/s "
        f"a core; median (range) of {options.repeats} repeats. Both sides evaluate both splits at the end.",
        "",
        "| net | plain, s | with fused attention, s | zoarium, s | times faster (than the better) | share of peak |",
        "|---|---|---|---|---|---|",
        *(compare(case, options.repeats, peak) for case in cases(options.quick)),
        "",
    ]
    print("\n".join(lines))
    if options.markdown:
        with options.markdown.open("a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
