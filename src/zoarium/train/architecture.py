"""What the trainer needs to know of an architecture: which route it takes and what a sample costs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from zoarium._core.digest import canonical
from zoarium.data.dataset import Dataset
from zoarium.nets import StackedNet, build, stack
from zoarium.nets.check import check_net
from zoarium.nets.registry import Factory
from zoarium.nets.stacked import ChainNet
from zoarium.train.chain import Chain, chain
from zoarium.train.routes import HandWritten, hand_written
from zoarium.zoo.config import ModelConfig

Route = Literal["chain", "transformer", "vmap", "loop"]
DataKey = tuple[str, float, float, int]


def data_key(config: ModelConfig) -> DataKey:
    """Name what decides the training data of a model: (data, data_fraction, label_noise, data_seed)."""
    return config.data, config.data_fraction, config.label_noise, config.data_seed


def architecture_key(config: ModelConfig, dataset: Dataset) -> Hashable:
    """Equal for models whose tensors have equal names and shapes."""
    return config.net, canonical(config.net_params), dataset.in_shape, dataset.n_outputs


@dataclass(frozen=True)
class Architecture:
    """An architecture on its data: the module (a template), the route it takes and why.

    Attributes
    ----------
    net : StackedNet
        The stacked form.
    chain : Chain or None
        Set on the "chain" route.
    batch_statistics : bool
        Whether a sample's gradient depends on its batch (batch norm) or on chance (dropout): then micro-batches are not
        exchangeable and a program holds one batch size.
    work : float
        Multiplications of one forward pass of one sample, roughly.
    inputs : int
        Numbers in one sample.
    hand : HandWritten or None
        The stack whose backward pass is written out, where the architecture has one beside "chain".
    """

    module: nn.Module
    net: StackedNet
    chain: Chain | None
    route: Route
    reason: str
    batch_statistics: bool
    work: float
    inputs: int
    hand: HandWritten | None = None

    @property
    def size(self) -> int:
        """Parameters p."""
        return self.net.layout.size


def describe(config: ModelConfig, dataset: Dataset, factory: Factory | None = None) -> Architecture:
    """Build the architecture of a configuration once and find its route.

    Raises
    ------
    NetError
        When the net has no parameters, or its outputs do not match the labels.
    """
    return describe_module(build_model(config, dataset, factory), dataset)


def describe_module(module: nn.Module, dataset: Dataset) -> Architecture:
    """Find the route of a module."""
    check_net(module, dataset)
    net = stack(module)
    params = dict(module.named_parameters())
    inputs = dataset.train.x[0].numel()
    links = chain(net.links, params) if isinstance(net, ChainNet) else None
    if links is not None:
        return Architecture(module, net, links, "chain", net.reason, False, float(net.layout.size), inputs)
    hand = hand_written(net, dataset)
    if hand is not None:
        work = float(net.layout.size)
        return Architecture(module, net, None, cast("Route", hand.route), hand.reason, False, work, inputs, hand)
    x = dataset.train.x[:2]
    x = x.to(next(iter(params.values())).dtype) if x.is_floating_point() else x
    net = stack(module.train(), example=x)
    route: Route = "loop" if net.kind == "loop" else "vmap"
    return Architecture(module, net, None, route, net.reason, _mixes(module), _work(module, x), inputs)


def build_model(config: ModelConfig, dataset: Dataset, factory: Factory | None = None) -> nn.Module:
    """Build the freshly initialised module of a configuration."""
    return build(
        factory or config.net, config.net_params,
        in_shape=dataset.in_shape, n_outputs=dataset.n_outputs, seed=config.seed,
    )  # fmt: skip


CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def _mixes(module: nn.Module) -> bool:
    known = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
             nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity,
             nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.Sequential)  # fmt: skip
    leaves = [m for m in module.modules() if not list(m.children())]
    return not all(isinstance(m, known) for m in leaves)  # an unknown layer might mix samples: be safe


def _work(module: nn.Module, x: Tensor) -> float:
    """Multiplications a sample: each use of a weight counts its size times the positions it is applied at."""
    total = 0.0

    def count(layer: nn.Module, _: object, out: object) -> None:
        nonlocal total
        size = sum(p.numel() for p in layer.parameters(recurse=False))
        if size and isinstance(out, Tensor):
            channels = out.shape[1 if isinstance(layer, CHANNELS_FIRST) else -1]
            positions = out.numel() / len(x) / max(channels, 1) if out.dim() > 2 else 1.0
            total += size * positions

    hooks = [m.register_forward_hook(count) for m in module.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
    return max(total, 1.0)
