"""A related task to move to: the same samples seen differently, or asked a different question.

Shifts are deterministic functions of a data set, a severity in [0, 1] and a seed, applied alike to the training and the
test split. They stand in for a second data set where there is none, as in corruption benchmarks (Hendrycks &
Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from zoarium._core.errors import DataError
from zoarium._core.registry import Registry
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split

SHIFTS = Registry("shift", error=DataError)


def shift(name: str, *, images: bool = False, reference: str = "") -> Callable[[Callable], Callable]:
    """Register a shift ``f(dataset, severity, seed) -> Dataset``; `images` marks those that need rows and columns."""
    return SHIFTS.register(name, reference=reference, images=images)


def shifted_task(dataset: Dataset, kind: str = "auto", severity: float = 1.0, seed: int = 0) -> Dataset:
    """A shifted version of a task, for transfer and fine-tuning.

    Parameters
    ----------
    dataset : Dataset
        The source task.
    kind : str, default "auto"
        A registered shift: "translate", "invert", "rotate" (images), "permute_features", "flip_signs" (any input),
        "rotate_classes" (classification), "rename_tokens" (language). "auto" takes "translate" for images,
        "rename_tokens" for text and "permute_features" otherwise.
    severity : float in [0, 1], default 1
        0 leaves the task as it is.
    seed : int, default 0
        Draws what a shift leaves to chance (which features, which order).

    Returns
    -------
    Dataset
        Same sizes, outputs and label sets; named ``"NAME+KIND"``.

    Raises
    ------
    DataError
        For an unknown shift, a severity out of range, or a shift that does not apply to these inputs.

    Examples
    --------
    >>> import torch
    >>> split = Split(torch.arange(12.0).reshape(3, 4), torch.tensor([0, 1, 2]))
    >>> task = Dataset("toy", split, split, "classification", 3)
    >>> shifted_task(task, "rotate_classes").train.y
    tensor([1, 2, 0])
    """
    if not 0.0 <= severity <= 1.0:
        raise DataError(f"severity must lie between 0 (no shift) and 1, found {severity}.")
    if kind == "auto":
        text = dataset.task == "language"
        kind = "rename_tokens" if text else "translate" if is_image(dataset) else "permute_features"
    method = SHIFTS[kind]
    if method.facts["images"] and not is_image(dataset):
        raise DataError(
            f"shift {kind!r} moves pixels, but inputs of {dataset.name!r} have shape {dataset.in_shape}; "
            "choose permute_features, flip_signs or rotate_classes."
        )
    if dataset.task == "language" and kind != "rename_tokens":
        raise DataError(f"shift {kind!r} does not apply to the tokens of {dataset.name!r}; choose rename_tokens.")
    return replace(method(dataset, severity, seed), name=f"{dataset.name}+{kind}")


def is_image(dataset: Dataset) -> bool:
    """Whether inputs have rows and columns: shape (height, width) or (channels, height, width)."""
    return len(dataset.in_shape) in (2, 3) and min(dataset.in_shape[-2:]) > 1


@shift("translate", images=True)
def translate(dataset: Dataset, severity: float, seed: int) -> Dataset:
    """Roll images down and right, by up to a quarter of their height and width."""
    height, width = dataset.in_shape[-2:]
    down, right = round(severity * height / 4), round(severity * width / 4)
    return _inputs(dataset, lambda x: x.roll((down, right), dims=(-2, -1)))


@shift("rotate", images=True)
def rotate(dataset: Dataset, severity: float, seed: int) -> Dataset:
    """Rotate images by up to 180 degrees, in quarter turns."""
    return _inputs(dataset, lambda x: x.rot90(round(2 * severity), dims=(-2, -1)))


@shift("invert")
def invert(dataset: Dataset, severity: float, seed: int) -> Dataset:
    """Blend inputs with their negative, whose range over the training split is the same."""
    low, high = dataset.train.x.min(), dataset.train.x.max()
    return _inputs(dataset, lambda x: (1 - severity) * x + severity * (low + high - x))


@shift("permute_features")
def permute_features(dataset: Dataset, severity: float, seed: int) -> Dataset:
    """Exchange a share of the features (pixels) among themselves, the same way for every sample."""
    d = dataset.train.x[0].numel()
    draw = generator("permute_features", seed)
    chosen = torch.randperm(d, generator=draw)[: round(severity * d)]
    order = torch.arange(d)
    order[chosen] = chosen.roll(1)  # one cycle, so that every chosen feature moves
    return _inputs(dataset, lambda x: x.flatten(1)[:, order].reshape(x.shape))


@shift("flip_signs")
def flip_signs(dataset: Dataset, severity: float, seed: int) -> Dataset:
    """Mirror a share of the features about their training mean, the same ones for every sample."""
    mean = dataset.train.x.flatten(1).mean(0)  # (d,)
    chosen = torch.randperm(len(mean), generator=generator("flip_signs", seed))[: round(severity * len(mean))]
    flipped = torch.zeros(len(mean), dtype=torch.bool)
    flipped[chosen] = True
    return _inputs(dataset, lambda x: torch.where(flipped, 2 * mean - x.flatten(1), x.flatten(1)).reshape(x.shape))


@shift("rotate_classes")
def rotate_classes(dataset: Dataset, severity: float, seed: int) -> Dataset:
    """Rename a share of the classes among themselves, in one cycle: the same inputs, another question."""
    if dataset.task != "classification":
        raise DataError(f"shift 'rotate_classes' needs classes, but {dataset.name!r} is a {dataset.task} task.")
    moved = _cycle(dataset.n_outputs, severity, "rotate_classes", seed)
    return replace(
        dataset,
        train=Split(dataset.train.x, moved[dataset.train.y]),
        test=Split(dataset.test.x, moved[dataset.test.y]),
    )


@shift("rename_tokens")
def rename_tokens(dataset: Dataset, severity: float, seed: int) -> Dataset:
    """Rename a share of the tokens among themselves, in inputs and targets alike: the same language in a cipher."""
    if dataset.task != "language":
        raise DataError(f"shift 'rename_tokens' needs tokens, but {dataset.name!r} is a {dataset.task} task.")
    renamed = _cycle(dataset.n_outputs, severity, "rename_tokens", seed)
    train, test = (Split(renamed[part.x], renamed[part.y]) for part in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test)


def _cycle(count: int, severity: float, *names: object) -> Tensor:
    """A renaming of `count` things that moves a share of them along one cycle."""
    some = round(severity * count)
    moved = torch.arange(count)
    if some > 1:
        chosen = torch.arange(count) if some == count else torch.randperm(count, generator=generator(*names))[:some]
        chosen = chosen.sort().values
        moved[chosen] = chosen.roll(-1)
    return moved


def _inputs(dataset: Dataset, function: Callable[[Tensor], Tensor]) -> Dataset:
    return replace(
        dataset,
        train=Split(function(dataset.train.x), dataset.train.y),
        test=Split(function(dataset.test.x), dataset.test.y),
    )
