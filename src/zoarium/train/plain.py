"""The plain loop: one model, ordinary PyTorch. What the stacked trainer must agree with, and easy to read.

Used as the oracle of the tests and as the yardstick of the benchmarks; `grow` itself never needs it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium.data.dataset import Dataset, Split
from zoarium.nets.registry import Factory
from zoarium.train.architecture import build_model
from zoarium.train.augment import Augmentation
from zoarium.train.timetable import order, total_epochs, total_steps
from zoarium.zoo.config import ModelConfig, Training


def train_one_plainly(
    config: ModelConfig, dataset: Dataset, factory: Factory | None = None, *,
    dtype: torch.dtype = torch.float32, history: str = "every",
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:  # fmt: skip
    """Train one model with `torch.optim` and a `torch` scheduler.

    Parameters
    ----------
    config : ModelConfig
        The model.
    dataset : Dataset
        The data it trains on (the variant its configuration names).
    factory : callable, optional
        The user's own net.
    dtype : torch.dtype, default float32
    history : {"every", "last"}, default "every"
        Epochs to evaluate.

    Returns
    -------
    state : dict of str to Tensor
        The trained state dict.
    history : dict of str to list
        Columns epoch, step, train_loss, train_accuracy, test_loss, test_accuracy.
    """
    training = config.training
    module = build_model(config, dataset, factory).to(dtype)
    x, y = _typed(dataset.train, dtype)
    steps = total_steps(training, len(x))
    optimizer = _optimizer(module, training)
    scheduler = _scheduler(optimizer, training, steps)
    table: dict[str, list[float]] = {}
    done = 0

    def note(epoch: int) -> None:
        values = (epoch, done, *_evaluate(module, dataset, dtype))
        names = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
        for name, value in zip(names, values, strict=True):
            table.setdefault(name, []).append(value)

    epochs = total_epochs(training, len(x))
    augmentation = None if training.augment == "none" else Augmentation(training.augment, [config.seed], [x])
    if history == "every":
        note(0)
    for epoch in range(epochs):
        module.train()
        seen = order(config.seed, epoch, len(x))
        drawn = augmentation.draw(epoch, len(x))[0] if augmentation else None
        for start in range(0, len(x), training.batch_size):
            rows = seen[start : start + training.batch_size]
            if done == steps or (training.drop_last and len(rows) < training.batch_size):
                break
            optimizer.zero_grad()
            micro = training.micro_batch or len(rows)  # what batch norm sees at a time
            for at in range(0, len(rows), micro):
                part = rows[at : at + micro]
                inputs = x[part]
                if augmentation is not None and drawn is not None:
                    inputs = augmentation(inputs, drawn[start + at : start + at + len(part)])
                loss = _loss(module(inputs), y[part], training.label_smoothing)
                (loss * (len(part) / len(rows))).backward()
            if training.clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), training.clip_norm)
            optimizer.step()
            done += 1
            if scheduler is not None and done < steps:
                scheduler.step()
        if history == "every" or epoch == epochs - 1:
            note(epoch + 1)
    return module.state_dict(), table


def _typed(split: Split, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = split.x.to(dtype) if split.x.is_floating_point() else split.x
    y = split.y.to(dtype) if split.y.is_floating_point() else split.y
    return x, y.unsqueeze(1) if y.is_floating_point() and y.dim() == 1 else y


def _loss(out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    if y.is_floating_point():
        return F.mse_loss(out, y)
    return F.cross_entropy(out.flatten(0, -2), y.flatten(), label_smoothing=smoothing)  # tokens are classes, one each


def _optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay}
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            module.parameters(),
            **common,
            momentum=training.momentum,
            nesterov=training.nesterov and training.momentum > 0,
        )
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(module.parameters(), **common, betas=(training.beta1, training.beta2), eps=training.eps)


def _scheduler(
    optimizer: torch.optim.Optimizer, training: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    schedulers = torch.optim.lr_scheduler
    if training.schedule == "constant" or steps < 1 or training.lr == 0:
        return None
    if training.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=steps)
    if training.schedule == "step":
        milestones = sorted(round(m * steps) for m in training.step_milestones)
        return schedulers.MultiStepLR(optimizer, milestones, gamma=training.step_factor)
    if math.isclose(training.warmup * steps, 1.0):  # OneCycleLR divides by the length of the rise
        return schedulers.OneCycleLR(optimizer, training.lr, steps, pct_start=1.000001 / steps, cycle_momentum=False)
    return schedulers.OneCycleLR(optimizer, training.lr, steps, pct_start=training.warmup, cycle_momentum=False)


def _evaluate(module: nn.Module, dataset: Dataset, dtype: torch.dtype) -> tuple[float, ...]:
    module.eval()
    values = []
    with torch.no_grad():
        for split in (dataset.train, dataset.test):
            x, y = _typed(split, dtype)
            out = module(x)
            values.append(_loss(out, y).item())
            values.append(math.nan if y.is_floating_point() else (out.argmax(-1) == y).double().mean().item())
    return tuple(values)
