"""Convolutional nets of any shape as a list of steps: chains, residual nets, a user's own.

`torch.fx` runs a module's forward once on a symbol and writes down what it calls, in training and in evaluation mode;
both must call the same. Each call must be one this module knows how to run for n models whose channels stand side by
side, (b, n·C, H, W): a convolution, batch norm, pooling, a pointwise function, a sum, zeros for new channels, then
linear layers on flat features. A forward that does anything else (or looks at values) is left to vmap, with the reason.

Reed, DeVito, He, Ussery & Ansel, "torch.fx: practical program capture and transformation for deep learning in Python",
2021 (arXiv 2112.08429).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F

from zoarium.nets.stacked import POINTWISE, is_flatten

Kind = Literal["conv", "norm", "pool", "pointwise", "add", "subsample", "pad", "flatten", "linear"]
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
ELEMENT_WISE = (*POINTWISE, nn.Dropout)


@dataclass(frozen=True)
class Step:
    """One call of a forward pass: value `output` from values `inputs`; value 0 is the batch of images.

    Attributes
    ----------
    kind : str
        What runs: see `Kind`.
    name : str
        Path of the module called, "" for a function.
    leaf : torch.nn.Module or None
        The module, or one that does what the function did; never one that works in place.
    amounts : tuple of int
        Stride of "subsample"; zeros before and after the channels for "pad".
    """

    kind: Kind
    name: str
    inputs: tuple[int, ...]
    leaf: nn.Module | None = None
    amounts: tuple[int, ...] = ()


@dataclass(frozen=True)
class ConvGraph:
    """The steps of a net in order (step i gives value i + 1, the last the output), and which value a layer gives."""

    steps: tuple[Step, ...]
    layers: Mapping[str, int]

    @property
    def uses(self) -> list[list[int]]:
        """The steps that read each value."""
        users: list[list[int]] = [[] for _ in range(len(self.steps) + 1)]
        for index, step in enumerate(self.steps):
            for value in step.inputs:
                users[value].append(index)
        return users


class Untraceable(Exception):
    """Why a module is no such graph, as a clause."""


class _Tracer(fx.Tracer):
    """Notes which node each leaf gave; goes through any module of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if isinstance(out, fx.Proxy) and not list(m.children()):
            self.outputs[self.path_of_module(m)] = out.node
        return out


def conv_graph(module: nn.Module) -> ConvGraph:
    """The steps of a convolutional net.

    Raises
    ------
    Untraceable
        With the reason, for any other module.
    """
    if not any(isinstance(child, nn.Conv2d) for child in module.modules()):
        raise Untraceable("it has no convolution")
    if any(child._forward_hooks or child._forward_pre_hooks for child in module.modules()):
        raise Untraceable("it has hooks")
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if len(names) != len(dict(module.named_parameters())):
        raise Untraceable("it has tied weights")
    modes, graphs = [(child, child.training) for child in module.modules()], []
    try:
        for training in (True, False):
            module.train(training)
            graphs.append(_read(module))
    finally:
        for child, mode in modes:
            child.training = mode
    words = [[(s.kind, s.name, s.inputs, s.amounts, repr(s.leaf)) for s in steps] for steps, _ in graphs]
    if words[0] != words[1]:
        raise Untraceable("its forward differs between training and evaluation")
    steps, layers = graphs[0]
    if not any(step.kind == "conv" for step in steps):
        raise Untraceable("its convolutions do not run")
    owners = [step for step in steps if step.name and step.leaf is not None]
    own = [f"{s.name}.{key}" for s in owners for key, _ in s.leaf.named_parameters()]  # pyright: ignore[reportOptionalMemberAccess]
    if len(own) != len(set(own)):
        raise Untraceable("a layer with weights runs twice")
    if set(own) != set(dict(module.named_parameters())):
        raise Untraceable("a parameter is used by no layer")
    return ConvGraph(steps, layers)


def _read(module: nn.Module) -> tuple[tuple[Step, ...], dict[str, int]]:
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception as error:  # a forward may fail on symbols in any way
        raise Untraceable(f"its forward cannot be written down ({' '.join(str(error).split())[:80]})") from None
    reader = _Reader(module)
    for node in graph.nodes:
        reader.take(node)
    layers = {name: reader.values[node] for name, node in tracer.outputs.items() if node in reader.values}
    return tuple(reader.steps), layers


class _Reader:
    """Turns nodes of a trace into steps."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.steps: list[Step] = []
        self.values: dict[fx.Node, int] = {}
        self.flat: set[int] = set()  # values that are features, not images
        self.sizes: dict[fx.Node, int | None] = {}  # axis of a size, None for a whole shape: read only to flatten

    def take(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node.args or self.values:
                raise Untraceable("its forward takes more than one batch of images")
            self.values[node] = 0
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node) or self.values.get(node.args[0]) != len(self.steps):
                raise Untraceable("it does not give the last thing it computes")
        elif node.op == "call_module":
            self._module(node)
        elif node.op in ("call_function", "call_method"):
            self._call(node)
        else:
            raise Untraceable(f"its forward reads {node.target!r} itself")

    def _add(self, node: fx.Node, kind: Kind, leaf: nn.Module | None = None, amounts: tuple[int, ...] = ()) -> None:
        nodes = [a for a in node.args if isinstance(a, fx.Node)]
        inputs = tuple(self._value(a) for a in nodes)
        flat = {value in self.flat for value in inputs}
        fits = {"linear": flat == {True}, "pointwise": True, "add": len(flat) == 1}.get(kind, flat == {False})
        if not fits:
            raise Untraceable(f"a {kind} step works on {'features' if True in flat else 'images'}")
        self.steps.append(Step(kind, str(node.target) if node.op == "call_module" else "", inputs, leaf, amounts))
        self.values[node] = len(self.steps)
        if kind == "flatten" or True in flat:
            self.flat.add(len(self.steps))

    def _flatten(self, node: fx.Node, value: int) -> None:
        if value in self.flat:
            raise Untraceable("it flattens features")
        self.steps.append(Step("flatten", "", (value,)))
        self.values[node] = len(self.steps)
        self.flat.add(len(self.steps))

    def _value(self, node: fx.Node) -> int:
        if node not in self.values:
            raise Untraceable("it computes with the shape of its inputs")
        return self.values[node]

    def _module(self, node: fx.Node) -> None:
        leaf = self.module.get_submodule(str(node.target))
        if len(node.args) != 1 or node.kwargs:
            raise Untraceable(f"layer {node.target!r} is called with more than one argument")
        kind = kind_of(leaf)
        if kind is None:
            raise Untraceable(f"layer {node.target!r} is a {type(leaf).__name__} no stacked kernel is here for")
        self._add(node, kind, self._out_of_place(node, leaf))

    def _out_of_place(self, node: fx.Node, leaf: nn.Module) -> nn.Module:
        """The same layer on a copy, where no one else reads what it would overwrite."""
        if not getattr(leaf, "inplace", False):
            return leaf
        if len(node.all_input_nodes[0].users) > 1:
            raise Untraceable(f"layer {node.target!r} overwrites a value that is used elsewhere")
        return _copied(leaf)

    def _call(self, node: fx.Node) -> None:
        target, args, kwargs = node.target, node.args, dict(node.kwargs)
        if not node.users and getattr(target, "checks_only", False):
            return
        first = args[0] if args else None
        if target in (operator.add, torch.add, "add", operator.iadd, "add_") and not kwargs and len(args) == 2:
            if not all(isinstance(a, fx.Node) for a in args):
                raise Untraceable("it adds a number to an activation")
            if target in (operator.iadd, "add_") and isinstance(first, fx.Node) and len(first.users) > 1:
                raise Untraceable("it overwrites a value that is used elsewhere")
            self._add(node, "add")
        elif target == "size":
            self.sizes[node] = args[1] if len(args) == 2 and isinstance(args[1], int) else None
        elif target is getattr:
            if args[1:] != ("shape",):
                raise Untraceable(f"it reads the attribute {args[1]!r} of an activation")
            self.sizes[node] = None
        elif target is operator.getitem and first in self.sizes:
            self.sizes[node] = args[1] if isinstance(args[1], int) else None
        elif target is operator.getitem:
            self._add(node, "subsample", None, (_stride(args[1]),))
        elif target is F.pad:
            self._add(node, "pad", None, _channel_padding(args[1:], kwargs))
        elif isinstance(first, fx.Node) and _flattens(node, self.sizes):
            self._flatten(node, self._value(first))
        elif target in ("mean", torch.mean) and _over_positions(args[1:], kwargs):
            self._add(node, "pool", nn.AdaptiveAvgPool2d(1))
            if not kwargs.get("keepdim", False):
                self._flatten(node, len(self.steps))
        else:
            made = _function_as_module(target, args[1:], kwargs)
            kind = None if made is None else kind_of(made)
            if made is None or kind is None:
                raise Untraceable(f"it calls {getattr(target, '__name__', target)}, no stacked kernel is here for")
            self._add(node, kind, self._out_of_place(node, made))


def kind_of(leaf: nn.Module) -> Kind | None:
    """Which step runs a layer, None for one that needs vmap."""
    if type(leaf) is nn.Conv2d:
        return "conv" if leaf.padding_mode == "zeros" and not isinstance(leaf.padding, str) else None
    if type(leaf) is nn.BatchNorm2d:  # momentum None averages over a count that may differ between models
        return "norm" if leaf.track_running_stats and leaf.momentum is not None else None
    if type(leaf) in ELEMENT_WISE:
        return "pointwise"
    if type(leaf) is nn.Linear:
        return "linear"
    if is_flatten(leaf):
        return "flatten"
    return "pool" if type(leaf) in POOLS and not getattr(leaf, "return_indices", False) else None


def _copied(leaf: nn.Module) -> nn.Module:
    leaf = copy.copy(leaf)
    leaf.inplace = False  # pyright: ignore[reportArgumentType]
    return leaf


def _stride(index: object) -> int:
    """The stride s of ``x[:, :, ::s, ::s]``."""
    whole = slice(None, None, None)
    if isinstance(index, tuple) and len(index) == 4 and index[0] == index[1] == whole and index[2] == index[3]:
        place = index[2]
        if isinstance(place, slice) and place.start is None and place.stop is None and isinstance(place.step, int):
            return place.step
    raise Untraceable(f"it indexes an activation by {index!r}")


def _channel_padding(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Zeros before and after the channels of ``F.pad(x, (0, 0, 0, 0, before, after))``."""
    named = dict(zip(("pad", "mode", "value"), args, strict=False)) | dict(kwargs)
    amounts, mode, value = named.get("pad"), named.get("mode", "constant"), named.get("value")
    if isinstance(amounts, list | tuple) and len(amounts) == 6 and all(isinstance(a, int) for a in amounts):
        zeros = mode == "constant" and value in (None, 0, 0.0)
        if zeros and not any(amounts[:4]) and min(amounts) >= 0:
            return int(amounts[4]), int(amounts[5])
    raise Untraceable(f"it pads an activation by {amounts!r}")


def _flattens(node: fx.Node, sizes: Mapping[fx.Node, int | None]) -> bool:
    """``torch.flatten(x, 1)``, ``x.flatten(1)``, ``x.view(x.size(0), -1)`` or ``x.reshape(x.shape[0], -1)``."""
    rest = (*node.args[1:], *node.kwargs.values())
    if node.target in (torch.flatten, "flatten"):
        return rest in ((1,), (1, -1))
    if node.target in ("view", "reshape", torch.reshape):
        rest = tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
        if len(rest) == 2 and isinstance(rest[0], fx.Node):
            return sizes.get(rest[0]) == 0 and rest[1:] == (-1,)
    return False


def _over_positions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    where = args[0] if args else kwargs.get("dim")
    if len(args) > 1 or set(kwargs) - {"dim", "keepdim"} or not isinstance(where, list | tuple):
        return False
    return sorted(d % 4 for d in where if isinstance(d, int)) == [2, 3]


def _function_as_module(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
    """The layer that does what a function call did, or None."""
    simple: dict[Any, type[nn.Module]] = {
        F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, F.relu_: nn.ReLU, "relu_": nn.ReLU,
        F.tanh: nn.Tanh, torch.tanh: nn.Tanh, "tanh": nn.Tanh,
        F.sigmoid: nn.Sigmoid, torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid,
        F.gelu: nn.GELU, F.silu: nn.SiLU, F.elu: nn.ELU, F.leaky_relu: nn.LeakyReLU, F.softplus: nn.Softplus,
        F.max_pool2d: nn.MaxPool2d, torch.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d,
        F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    }  # fmt: skip
    kind = simple.get(target)
    if kind is None:
        return None
    if target in (F.relu_, "relu_"):
        kwargs = {**kwargs, "inplace": True}
    try:
        return kind(*args, **kwargs)
    except TypeError:
        return None
