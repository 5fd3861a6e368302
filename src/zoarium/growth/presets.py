"""The twelve published phase zoos by name, each with a twin that grows offline in minutes.

The grids are those of "A Model Zoo on Phase Transitions in Neural Networks", 2025 (arXiv 2504.18072), as far as its
repository states them; what it does not state is our choice and said to be. A twin is a small zoo of the same kind: the
same axes and optimiser, on data that need no network, with a smaller net of the same family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoarium._core.errors import GridError
from zoarium._core.registry import Registry
from zoarium.growth.grid import Grid

PRESETS = Registry("preset", modules=("zoarium.growth.presets", "zoarium.growth.twins"), error=GridError)
REFERENCE = "A Model Zoo on Phase Transitions in Neural Networks, 2025 (arXiv 2504.18072)"
TAXONOMY = (
    "Yang et al., Taxonomizing local versus global structure in neural network loss landscapes, 2021 (2107.11228)"
)


@dataclass(frozen=True)
class Preset:
    """A zoo by name.

    Attributes
    ----------
    name : str
        Such as ``"cifar10-resnet18"`` or ``"cifar10-resnet18-twin"``.
    grid : Grid
    published, chosen : str
        What of the recipe is published, and what is our choice.
    checkpoints : str
        Which epochs the published zoo kept.
    in_shape : tuple of int
        Shape of one input: what is known of the data before they are there.
    n_outputs : int
    measures : mapping
        Measures of a phase diagram with settings that suit the zoo's size.
    twin_of : str
        The published zoo a twin stands for; empty for a published one.
    """

    name: str
    grid: Grid
    published: str
    chosen: str
    in_shape: tuple[int, ...]
    n_outputs: int
    checkpoints: str = "every"
    measures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    twin_of: str = ""

    def __len__(self) -> int:
        return len(self.grid)

    def __str__(self) -> str:
        return f"{self.name}: {len(self)} models, {self.grid.net} on {self.grid.axes['data'][0]}"


def preset(name: str) -> Preset:
    """A zoo by its name.

    Parameters
    ----------
    name : str
        See ``zoarium presets``; a leading ``preset:`` is allowed.

    Returns
    -------
    Preset
        ``za.grow(preset.grid, folder, checkpoints=preset.checkpoints)`` grows it, and so does ``zoarium grow
        preset:NAME -o folder``.

    Raises
    ------
    GridError
        For an unknown name, listing the known ones.

    Examples
    --------
    >>> zoo = preset("cifar10-resnet18")
    >>> print(zoo)
    cifar10-resnet18: 192 models, resnet18 on cifar10
    >>> zoo.grid.axes["width"], zoo.grid.load, zoo.grid.temperature
    ([2, 4, 8, 16, 32, 64, 128, 256], 'width', 'batch_size')
    """
    return PRESETS[name.removeprefix("preset:")]()


def register(name: str, make: Callable[[], Preset], reference: str) -> None:
    """Enter a preset; it is made when asked for."""
    PRESETS.register(name, reference=reference)(make)


# ------------------------------------------------------------------ ResNets on images

IMAGES = {"svhn": ((3, 32, 32), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100)}
IMAGES["tiny_imagenet"] = ((3, 64, 64), 200)
POWERS = [2, 4, 8, 16, 32, 64, 128, 256]
# On the published hardware large ResNet-50s took their batches in parts, so that batch norm saw these many samples.
PARTS = [(64, [1024], 512), (128, [512, 1024], 256), (256, [256, 512, 1024], 128)]


def _resnet(data: str, depth: int) -> Preset:
    augment = "crop_flip_rotate" if data.startswith("cifar") else "none"
    epochs = 100 if data == "tiny_imagenet" else 150
    parts = [{"when": {"width": w, "batch_size": b}, "set": {"micro_batch": m}} for w, b, m in PARTS]
    grid = Grid(
        f"resnet{depth}", data=data, width=POWERS, batch_size=[8, 16, 32, 64, 128, 256, 512, 1024], seed=range(3),
        stem="imagenet", optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="one_cycle", epochs=epochs,
        clip_norm=None, augment=augment, drop_last=True, exceptions=parts if depth == 50 else (),
    )  # fmt: skip
    shape, classes = IMAGES[data]
    published = (
        "widths, batch sizes, seeds, epochs, SGD with momentum 0.9 and weight decay 5e-4, one-cycle schedule with peak "
        "0.1, 7 x 7 stem and max-pool also on 32 x 32 images, Kaiming-uniform start, no dropout, a checkpoint an epoch"
    )
    published += "; crop, flip and rotation by 20 degrees" if augment != "none" else ""
    published += "; batches of the widest nets in micro-batches" if depth == 50 else ""
    chosen = "incomplete batches are dropped (batch norm of a single sample is undefined)"
    chosen += "" if augment != "none" else "; no augmentation"
    return Preset(_named(data, f"resnet{depth}"), grid, published, chosen, shape, classes)


def _named(data: str, net: str) -> str:
    return f"{data.replace('_', '-')}-{net}"


for _data in IMAGES:
    for _depth in (18, 50):
        register(_named(_data, f"resnet{_depth}"), lambda d=_data, n=_depth: _resnet(d, n), REFERENCE)


# ------------------------------------------------------------------ vision transformers, language, physics


def _vit(data: str) -> Preset:
    grid = Grid(
        "vit", data=data, width=[12, 24, 48, 96, 192, 384, 768], batch_size=[16, 32, 64, 128, 256, 512, 1024],
        seed=range(3), patch=4, depth=12, heads=12, optimizer="adamw", lr=1e-3, weight_decay=0.05,
        schedule="one_cycle", epochs=150, clip_norm=1.0, augment="crop_flip_rotate",
    )  # fmt: skip
    shape, classes = IMAGES[data]
    published = "model width against batch size, 147 models"
    chosen = (
        "all values: seven widths up to ViT-B, seven batch sizes, 12 blocks and heads, patches of 4 pixels, AdamW at "
        "1e-3 with weight decay 0.05, one-cycle, 150 epochs, the augmentation of the ResNets"
    )
    return Preset(_named(data, "vit"), grid, published, chosen, shape, classes)


def _gpt2() -> Preset:
    grid = Grid(
        "gpt2", data="openwebtext", model_dim=[64, 128, 192, 256, 384, 512, 768, 1024],
        batch_size=[4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192], seed=range(3), n_layers=12, n_heads=16,
        optimizer="adamw", lr=6e-4, beta2=0.95, weight_decay=0.1, schedule="one_cycle", warmup=0.02, epochs=1,
        clip_norm=1.0,
    )  # fmt: skip
    published = "model_dim against batch size, 264 models"
    chosen = (
        "all values: eight widths, eleven batch sizes, 12 layers and 16 heads, context 1,024, AdamW at 6e-4 (0.9, "
        "0.95) with weight decay 0.1, one pass"
    )
    return Preset("openwebtext-gpt2", grid, published, chosen, (1024,), 50257)


def _pinn() -> Preset:
    grid = Grid(
        "pinn_mlp", data="convection_pinn", beta=[1, 5, 10, 15, 20, 25, 30, 40, 50, 60],
        lr=[1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 6e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2, 2e-2, 3e-2, 6e-2], seed=range(5),
        n_initial=256, n_boundary=100, n_residual=1000, width=50, depth=4, optimizer="adam", batch_size=1356,
        weight_decay=0.0, clip_norm=None, schedule="cosine", epochs=10_000,
    )  # fmt: skip
    published = "an MLP on 1-d convection, coefficient beta against learning rate, 700 models"
    chosen = (
        "all values: ten betas, fourteen rates, five seeds; 4 layers of 50 tanh units and 1,000 collocation points as "
        "Krishnapriyan et al. 2021, full batches, Adam, 10,000 steps"
    )
    return Preset("convection-pinn", grid, published, chosen, (5,), 1, checkpoints="every:100")


for _data in ("cifar10", "cifar100"):
    register(_named(_data, "vit"), lambda d=_data: _vit(d), REFERENCE)
register("openwebtext-gpt2", _gpt2, REFERENCE)
register("convection-pinn", _pinn, REFERENCE)


# ------------------------------------------------------------------ the grid behind the phases


def _taxonomy() -> Preset:
    grid = Grid(
        "resnet18", data="cifar10", width=[2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128],
        batch_size=[16, 24, 32, 44, 64, 92, 128, 180, 256, 364, 512, 724, 1024], seed=range(5), stem="cifar",
        optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="step", step_milestones=(0.5, 0.75),
        step_factor=0.1, epochs=150, clip_norm=None, augment="crop_flip", drop_last=True,
    )  # fmt: skip
    published = (
        "widths, batch sizes, seeds, 150 epochs at 0.1, a tenth of it after a half and a hundredth after three "
        "quarters, SGD with momentum 0.9 and weight decay 5e-4, incomplete batches dropped"
    )
    chosen = "CIFAR stem, crop and flip"
    return Preset("cifar10-resnet18-taxonomy", grid, published, chosen, (3, 32, 32), 10, checkpoints="last")


register("cifar10-resnet18-taxonomy", _taxonomy, TAXONOMY)
