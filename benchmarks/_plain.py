"""The plain route: one ordinary PyTorch model at a time, as most sweeps train them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def plain_mlp(width: int, inputs: int = 64, classes: int = 10) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


def train_plainly(module: nn.Module, x, y, *, batch_size: int, epochs: int, seed: int, lr: float = 0.05) -> nn.Module:
    """SGD with momentum, weight decay, clipping and one-cycle rates over shuffled mini-batches."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(x) // batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    done = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=draw).split(batch_size):
            optimizer.zero_grad()
            out = module(x[rows])  # (b, c), or (b, t, c) for tokens
            F.cross_entropy(out.flatten(0, -2), y[rows].flatten()).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            optimizer.step()
            done += 1
            if done < steps:
                scheduler.step()
    return module


def accuracy(module: nn.Module, x, y) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return (module.eval()(x).argmax(1) == y).double().mean().item()
