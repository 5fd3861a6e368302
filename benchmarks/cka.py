"""CKA of all pairs of 200 models in 3 layers on 1,000 samples, beside torch_cka 0.21 in the same run.

torch_cka compares two models at a time, so it is timed on a few pairs and its time for all of them is extrapolated
(pairs are independent and cost the same). It is given the same 3 layers and the same batches; it has no way to leave
out the 6 cross-layer values it also computes. Its values are debiased too and averaged over batches as ours are, so the
two must agree up to rounding: both are compared with the same formula in double precision. The biased form that most
papers print is shown beside them.

    python benchmarks/cka.py [--models 200] [--pairs 6] [--repeats 3] [--markdown]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import time
import warnings
from importlib.metadata import version

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.cka import cka
from zoarium.zoo.cohort import Cohort

LAYERS = {"1": "cka:1", "3": "cka:3", "4": "cka"}  # name in the module: quantity
SAMPLES, BLOCK = 1000, 250


def population(models: int) -> tuple[Cohort, list[nn.Module], Dataset]:
    torch.manual_seed(0)
    nets: list[nn.Module] = [
        nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        for _ in range(models)
    ]
    x = torch.rand(SAMPLES, 64)
    split = Split(x, torch.zeros(SAMPLES, dtype=torch.long))
    return Cohort.from_modules(nets), nets, Dataset("uniform", split, split, "classification", 10)


def theirs(a: nn.Module, b: nn.Module, loader: DataLoader) -> np.ndarray:
    from torch_cka import CKA

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        layers = list(LAYERS)
        peer = CKA(a, b, model1_layers=layers, model2_layers=layers)
        peer.compare(loader)
    for net in (a, b):  # it leaves its hooks behind
        for module in net.modules():
            module._forward_hooks.clear()
    return peer.hsic_matrix.diagonal().numpy()


def biased(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=6, help="pairs the peer is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()

    cohort, nets, data = population(options.models)
    i, j = torch.triu_indices(options.models, options.models, 1)
    pairs = torch.stack([i, j], 1)
    order = torch.randperm(SAMPLES, generator=generator("cka", 0))  # the batches our measure draws
    loader = DataLoader(TensorDataset(data.test.x[order]), batch_size=BLOCK)
    chosen = np.linspace(0, len(pairs) - 1, options.pairs).astype(int)
    layers = [{"4": "logits"}.get(layer, layer) for layer in LAYERS]
    cka([cohort], pairs[:2], data, layers=layers, block=BLOCK)  # both are warm when timed
    theirs(nets[0], nets[1], loader)

    ours_s, ours_cpu, peer_s, peer_cpu, values = [], [], [], [], {}
    peer_values = np.empty((options.pairs, len(LAYERS)))
    for _ in range(options.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        values = cka([cohort], pairs, data, layers=layers, block=BLOCK)
        ours_s.append(time.perf_counter() - wall)
        ours_cpu.append(time.process_time() - cpu)
        wall, cpu = time.perf_counter(), time.process_time()
        for n, pair in enumerate(chosen):
            a, b = pairs[pair].tolist()
            peer_values[n] = theirs(nets[a], nets[b], loader)
        scale = len(pairs) / options.pairs
        peer_s.append((time.perf_counter() - wall) * scale)
        peer_cpu.append((time.process_time() - cpu) * scale)

    mine = np.stack([values[name].value[chosen] for name in LAYERS.values()], 1)
    exact = cka([cohort.to(dtype=torch.float64)], pairs[chosen], data, layers=layers, block=BLOCK)
    reference = np.stack([exact[name].value for name in LAYERS.values()], 1)
    ours_off, peer_off = np.abs(mine - reference).max(), np.abs(peer_values - reference).max()
    features = cohort.features(data.test.x[order], layers)
    excess = max(
        biased(features[layer][a].double().numpy()[:BLOCK], features[layer][b].double().numpy()[:BLOCK]) - mine[n, k]
        for n, (a, b) in enumerate(pairs[chosen].tolist()) for k, layer in enumerate(layers)
    )  # fmt: skip
    ratios = np.array(peer_cpu) / np.array(ours_cpu)
    rows = [
        ("work", f"{len(pairs):,} pairs of {options.models} MLPs 64-128-128-10, 3 layers, {SAMPLES} samples"),
        ("zoarium", f"{np.median(ours_s):.2f} s wall, {np.median(ours_cpu):.2f} s processor time"),
        ("torch_cka " + version("torch_cka"), f"{np.median(peer_s):,.0f} s (from {options.pairs} pairs)"),
        ("ratio (processor time)", f"{np.median(ratios):,.0f} ({ratios.min():,.0f} to {ratios.max():,.0f})"),
        ("largest error in single precision", f"zoarium {ours_off:.0e}, torch_cka {peer_off:.0e}"),
        ("biased form exceeds ours by up to", f"{excess:.3f} on {BLOCK} samples"),
        ("also computed by", "zoarium: a standard error of every value; torch_cka: 6 cross-layer values a pair"),
        ("with", f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}"),
    ]
    if options.markdown:
        print("## CKA of all pairs\n\n| what | value |\n|---|---|")
    for name, text in rows:
        print(f"| {name} | {text} |" if options.markdown else f"{name:34s} {text}")


if __name__ == "__main__":
    main()
