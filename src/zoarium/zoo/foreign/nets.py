"""Give foreign models a net, so that they can run: its names and shapes are compared with theirs first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoarium._core.digest import canonical
from zoarium._core.errors import NetError
from zoarium.zoo.foreign.model import TensorInfo
from zoarium.zoo.manifest import DataInfo

if TYPE_CHECKING:
    from torch import nn

    from zoarium.data.dataset import Dataset

COUNTER = "num_batches_tracked"  # batch norm's own count, which old checkpoints lack and evaluation does not use
GIVEN = ("in_shape", "n_outputs")


@dataclass
class NetOfModels:
    """A net with its parameters and the data it reads, as given for foreign models.

    Parameters
    ----------
    net : str or callable
        A registered net, or a factory.
    params : mapping
        What the factory takes; without `data` also ``in_shape`` and ``n_outputs`` where it takes these.
    data : str or Dataset, optional
        What the models are measured on.
    check : bool, default True
        Whether to run the net on two samples of its data. Without, only names and shapes are made and no memory is
        taken: sizes that a file claims have not been compared with its tensors yet.
    """

    net: str | Callable[..., nn.Module]
    params: Mapping[str, Any] = field(default_factory=dict)
    data: str | Dataset | None = None
    check: bool = True

    def __post_init__(self) -> None:
        from zoarium.data import Dataset, load

        self.dataset: Dataset | None = None if self.data is None else load(self.data)
        self.stored = isinstance(self.data, Dataset)
        self.name: str = self.net if isinstance(self.net, str) else getattr(self.net, "__name__", "net")
        info = self.info
        if self.check:
            self.module = build_net(self.net, self.params, info)
        else:
            import torch

            with torch.device("meta"):
                self.module = build_net(self.net, self.params, info)
        self.n_params = sum(p.numel() for p in self.module.parameters())
        if self.dataset is not None and self.check:
            from zoarium.nets.check import check_net

            check_net(self.module, self.dataset)

    @property
    def info(self) -> DataInfo | None:
        """The data as a zoo describes them."""
        return None if self.dataset is None else DataInfo.of(self.dataset, "stored" if self.stored else "registered")

    def columns(self) -> dict[str, Any]:
        """Columns of the models table."""
        plain = {k: v for k, v in self.params.items() if isinstance(v, str | int | float | bool) and k not in GIVEN}
        data = {} if self.dataset is None else {"data": self.dataset.name}
        return {
            **plain, **data, "net": self.name, "net_params": canonical(dict(self.params)), "n_params": self.n_params,
        }  # fmt: skip

    def fit(self, what: str, tensors: Mapping[str, TensorInfo]) -> str:
        """Compare with a model's tensors; see :func:`fit_prefix`."""
        told = ", ".join(f"{k}={v}" for k, v in self.params.items())
        return fit_prefix(what, tensors, self.module, f"{self.name}({told})" if told else repr(self.name))


def build_net(net: str | Callable[..., nn.Module], params: Mapping[str, Any], info: DataInfo | None) -> nn.Module:
    """Build a net for data, or without any from parameters that say all."""
    from zoarium.nets.registry import build, factory_of

    if info is not None:
        return build(net, params, in_shape=info.in_shape, n_outputs=info.n_outputs)
    import inspect

    accepted = inspect.signature(factory_of(net)).parameters
    needed = [name for name in GIVEN if name in accepted and accepted[name].default is inspect.Parameter.empty]
    lacking = [name for name in needed if name not in params]
    if lacking:
        raise NetError(
            f"net {net if isinstance(net, str) else getattr(net, '__name__', net)!r} needs {' and '.join(lacking)}; "
            "name the data of the models with data=, or give both in net_params."
        )
    given = {name: params[name] for name in GIVEN if name in params}
    rest = {name: value for name, value in params.items() if name not in GIVEN}
    in_shape, n_outputs = tuple(given.get("in_shape", ())), int(given.get("n_outputs", 1))
    return build(net, rest, in_shape=in_shape, n_outputs=n_outputs)


def fit_prefix(what: str, tensors: Mapping[str, TensorInfo], module: nn.Module, net: str) -> str:
    """Check that tensors are a net's parameters and buffers.

    Parameters
    ----------
    what : str
        The model, for messages.
    tensors : mapping of str to TensorInfo
        Its tensors.
    module : torch.nn.Module
        The net.
    net : str
        The net, for messages.

    Returns
    -------
    str
        What has to be taken off every name, such as ``"model."``; empty where names agree.

    Raises
    ------
    NetError
        Naming the first tensor that is missing, has another shape, or has no place in the net.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for prefix in _shared_prefixes(tensors):
        found = {name.removeprefix(prefix): info.shape for name, info in tensors.items()}
        lacking = {name for name in wanted if name not in found and not name.endswith(COUNTER)}
        if not lacking and all(found[name] == shape for name, shape in wanted.items() if name in found):
            if set(found) <= set(wanted):
                return prefix
            extra = min(set(found) - set(wanted))
            raise NetError(
                f"{what} does not fit net {net}: it has a tensor {extra!r} of shape {found[extra]} that the net lacks; "
                "give the net it was trained as."
            )
    found = {name: info.shape for name, info in tensors.items()}
    name = next(n for n in wanted if not n.endswith(COUNTER) and found.get(n) != wanted[n])
    if name in found:
        raise NetError(
            f"{what} does not fit net {net}: tensor {name!r} has shape {found[name]}, the net's has {wanted[name]}; "
            "give the net's own parameters with net_params, or data of the right shape."
        )
    raise NetError(
        f"{what} does not fit net {net}: it lacks the net's tensor {name!r} (it has {', '.join(sorted(found)[:3])}, "
        "...); give the net it was trained as, or a factory with its names."
    )


def _shared_prefixes(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The dotted beginnings that all names share, shortest first, from none."""
    first = next(iter(tensors), "").split(".")
    prefixes = [""]
    for n in range(1, len(first)):
        prefix = ".".join(first[:n]) + "."
        if not all(name.startswith(prefix) for name in tensors):
            break
        prefixes.append(prefix)
    return prefixes
