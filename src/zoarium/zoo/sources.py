"""Where the nets and the data of a zoo's models come from: a registry, the zoo itself, or the user's hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import DataError, NetError, StoreError, unknown_name
from zoarium.zoo.manifest import DataInfo
from zoarium.zoo.store import Store
from zoarium.zoo.tables import closest

if TYPE_CHECKING:
    from torch import nn

    from zoarium.data.dataset import Dataset

VARIANT = {"data_fraction": 1.0, "label_noise": 0.0, "data_seed": 0}
VARIANTS_KEPT = 16  # data variants held in memory


class Sources:
    """Nets and data, as methods of a zoo; none of them runs a query, so forked workers may call them."""

    store: Store

    @property
    def path(self) -> Path:
        """The folder."""
        return self.store.root

    def row_of(self, id: str) -> dict[str, Any]:
        """A model's row of the table as a dict."""
        try:
            return self.store.models.row(self.store.rows[id], named=True)
        except KeyError:
            raise StoreError(f"no model {id!r} in {self.path}.{closest(id, self.store.rows)}") from None

    def attach_net(self, name: str, factory: Callable[..., nn.Module]) -> None:
        """Give the factory of a net that is not registered, for as long as this object lives."""
        self.store.attached["net", name] = factory

    def module_of(self, id: str, net: Any = None) -> nn.Module:
        """The architecture of a model, freshly built; its weights are not the model's.

        Parameters
        ----------
        id : str
            The model.
        net : str or callable, optional
            Its net, for one that is neither registered nor attached.

        Raises
        ------
        NetError
            For a net that is not known here.
        """
        from zoarium.nets.registry import NETS
        from zoarium.zoo.foreign.nets import build_net

        row = self.row_of(id)
        name = row.get("net")
        if name is None and net is None:
            raise NetError(
                f"model {id!r} comes from elsewhere and has no net here; give it with zoo.set_net, or pass "
                "net=your_factory."
            )
        factory = net if net is not None else self.store.attached.get(("net", name), name)
        try:
            factory = NETS[str(factory)].function if factory is None or isinstance(factory, str) else factory
        except NetError as error:
            raise NetError(
                f"model {id!r} has the net {factory!r}, which is not registered here; pass net=your_factory, call "
                f"zoo.attach_net({factory!r}, your_factory), or register it with @zoarium.net({factory!r})."
            ) from error
        info = None if row.get("data") is None and row.get("source") is not None else self._data_info(id)
        try:
            params = json.loads(row.get("net_params") or "{}")
        except ValueError as error:
            raise StoreError(f"model {id!r}: its net_params are not JSON: {row['net_params']!r}.") from error
        return build_net(factory, params, info)

    def attach_data(self, name: str, data: Dataset) -> None:
        """Give the data set called `name`, for a zoo that does not hold it.

        Raises
        ------
        DataError
            If it is not the one the models were trained on.
        """
        info = self.store.manifest.data.get(name)
        if info is not None:
            self._same(name, data, info)
        self.store.attached["data", name] = data

    def _data_info(self, id: str) -> DataInfo:
        name = self.row_of(id).get("data")
        described = self.store.manifest.data
        if name is None:
            raise DataError(
                f"model {id!r} comes from elsewhere and names no data; say what it is measured on with "
                "zoo.set_net(net, data=...)."
            )
        if name not in described:
            raise DataError(
                f"model {id!r} was trained on {name!r}, which zoo.json does not describe; "
                f"described: {', '.join(described) or 'none'}."
            )
        return described[name]

    def data_key(self, id: str) -> tuple[Any, ...]:
        """What decides the data of a model: fingerprint of the whole task, then fraction, label noise and data seed."""
        row = self.row_of(id)
        return (self._data_info(id).fingerprint, *_variant(row).values())

    def data_of(self, id: str | Sequence[str]) -> Dataset:
        """The data a model was trained on, its fraction and label noise applied.

        Parameters
        ----------
        id : str or sequence of str
            A model, or models that share their data.

        Raises
        ------
        DataError
            If the data cannot be found, or are not what the models were trained on.
        """
        ids = [id] if isinstance(id, str) else list(id)
        if not ids:
            raise DataError("data_of needs at least one model.")
        keys = {self.data_key(i) for i in ids}
        if len(keys) > 1:
            raise DataError(
                f"these {len(ids)} models were trained on {len(keys)} different data sets; ask for one each."
            )
        row = self.row_of(ids[0])
        base = self.base_data(row["data"])
        variant = _variant(row)
        if variant["data_fraction"] >= 1 and variant["label_noise"] <= 0:
            return base
        cached = self.store.attached.setdefault("variants", {})
        key = keys.pop()
        if key not in cached:
            while len(cached) >= VARIANTS_KEPT:
                cached.pop(next(iter(cached)))
            cached[key] = base.variant(
                fraction=variant["data_fraction"], label_noise=variant["label_noise"], seed=variant["data_seed"]
            )
        return cached[key]

    def base_data(self, name: str) -> Dataset:
        """The whole data set called `name`, verified by its fingerprint and kept in memory."""
        if ("data", name) in self.store.attached:
            return self.store.attached["data", name]
        described = self.store.manifest.data
        if name not in described:
            raise DataError(unknown_name("data set of this zoo", name, described))
        info = described[name]
        if info.source == "stored":
            from zoarium.zoo.datafile import data_file, read_data

            data = read_data(self.store.verified_path(data_file(info.fingerprint), whole=True), name, info)
        elif info.source == "registered":
            from zoarium.data import load

            data = load(name)
        else:
            raise DataError(
                f"the data {name!r} are not kept in {self.path}; give them with zoo.attach_data({name!r}, dataset)."
            )
        self._same(name, data, info)
        self.store.attached["data", name] = data
        return data

    def _same(self, name: str, data: Dataset, info: DataInfo) -> None:
        if data.fingerprint != info.fingerprint:
            raise DataError(
                f"the data {name!r} are not what the models of {self.path} were trained on (fingerprint "
                f"{data.fingerprint}, trained on {info.fingerprint}); attach the original with zoo.attach_data."
            )


def _variant(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: default if row.get(name) is None else row[name] for name, default in VARIANT.items()}
