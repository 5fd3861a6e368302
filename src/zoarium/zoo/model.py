"""One model of a zoo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import StoreError
from zoarium.zoo.cohorts import Place, load_places

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoarium.zoo.foreign.model import TensorInfo
    from zoarium.zoo.model_folder.export import Format
    from zoarium.zoo.zoo import Zoo

BOOKKEEPING = ("id", "arch", "cohort", "status", "parents", "relation", "net_params")


class Model:
    """One trained network: its record now, its tensors when asked for.

    Made by ``zoo["mlp-3fa2..."]`` or ``zoo[0]``.
    """

    def __init__(self, zoo: Zoo, id: str) -> None:
        self.zoo = zoo
        self.id = id

    @property
    def row(self) -> dict[str, Any]:
        """Its row of the models table."""
        return self.zoo.row_of(self.id)

    @property
    def config(self) -> dict[str, Any]:
        """Net, data and training: what decided its weights. Columns that do not apply to it are left out."""
        row = self.row
        config = {k: v for k, v in row.items() if k not in BOOKKEEPING and v is not None}
        params = json.loads(row.get("net_params") or "{}")
        return {**config, **{k: v for k, v in params.items() if k not in config}}

    @property
    def status(self) -> str:
        """``trained``, ``diverged``, ``planned``, ``foreign`` or ``damaged``."""
        return self.row["status"]

    @property
    def parents(self) -> list[str]:
        """Ids of the models it was made from; empty for one grown from scratch."""
        return list(self.row.get("parents") or [])

    @property
    def relation(self) -> str | None:
        """How it came from its parents (finetune, merge, prune, ...); None for one grown from scratch."""
        return self.row.get("relation")

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """Itself, then its ancestors, nearest first: ``{"id", "relation", "parents"}`` each, once."""
        known = self.zoo.store.rows
        out: dict[str, dict[str, Any]] = {}
        queue = [self.id]
        for one in queue:
            if one in out:
                continue
            row = self.zoo.row_of(one) if one in known else {}  # a parent may live outside this zoo
            parents = list(row.get("parents") or [])
            out[one] = {"id": one, "relation": row.get("relation"), "parents": parents}
            queue += parents
        return list(out.values())

    @property
    def epochs(self) -> list[int]:
        """Epochs whose weights are stored, in order."""
        return [row["epoch"] for row in self.zoo.store.checkpoints_of(self.id)]

    @property
    def epoch(self) -> int | None:
        """Epoch of the last stored checkpoint; None if there is none."""
        return max(self.epochs, default=None)

    @property
    def history(self) -> pl.DataFrame:
        """Loss, accuracy and learning rate by epoch."""
        return self.zoo.store.frame("history").filter(pl.col("id") == self.id)

    @property
    def measures(self) -> dict[str, float]:
        """Every measured quantity, at the latest epoch it was measured at."""
        row = self.zoo[[self.id]].measured.row(0, named=True)
        return {k: v for k, v in row.items() if k not in self.zoo.table.columns and v is not None}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Type and shape of every tensor at the last stored epoch; only a header is read.

        Raises
        ------
        StoreError
            If no weights are stored, or a foreign file is not there.
        DamagedError
            If a file is not what was written or added.
        """
        from zoarium.zoo.tensors import stored_tensors

        return stored_tensors(self.zoo.store, self._checkpoint())

    def tensor(self, name: str, epoch: int | None = None) -> Tensor:
        """One tensor at a stored epoch, default the last; the others are not held.

        Parameters
        ----------
        name : str
            As in `tensors`.
        epoch : int, optional
            A stored epoch.

        Returns
        -------
        Tensor
            In its own type, on the CPU.

        Raises
        ------
        StoreError
            For a tensor or epoch the model does not have, or a foreign file that is not there.
        DamagedError
            If the weights are not what was written or added.

        Notes
        -----
        The first call reads the whole model once to verify it, a tensor at a time; a foreign model is verified by the
        SHA-256 of its files.
        """
        from zoarium.zoo.tensors import stored_tensor

        return stored_tensor(self.zoo.store, self._checkpoint(epoch), name)

    def _checkpoint(self, epoch: int | None = None) -> dict[str, Any]:
        """Its row of ``checkpoints`` at an epoch."""
        place = self.place(epoch)
        return next(row for row in self.zoo.store.checkpoints_of(self.id) if row["epoch"] == place.epoch)

    def place(self, epoch: int | None = None) -> Place:
        """Where its weights of an epoch (default the last) lie."""
        rows = self.zoo.store.checkpoints_of(self.id)
        chosen = [row for row in rows if epoch is None or row["epoch"] == epoch]
        if not chosen:
            has = ", ".join(str(row["epoch"]) for row in rows)
            wanted = "" if epoch is None else f" of epoch {epoch}"
            raise StoreError(
                f"model {self.id!r} ({self.status}) has no weights{wanted}; "
                + (f"it has epochs: {has}." if has else "none of its checkpoints are stored.")
            )
        return Place(*(chosen[-1][field] for field in ("id", "epoch", "file", "row", "digest")))

    def state_dict(self, epoch: int | None = None) -> dict[str, Tensor]:
        """Named tensors at a stored epoch, default the last; reads and verifies this model's slice of the file.

        Raises
        ------
        StoreError
            If that epoch is not stored.
        DamagedError
            If the weights are not what was written.
        """
        stacked = load_places(self.zoo.store, [self.place(epoch)])
        return {name: tensor[0] for name, tensor in stacked.items()}

    def module(self, net: Any = None, epoch: int | None = None) -> nn.Module:
        """Its `nn.Module` with its weights, in evaluation mode.

        Parameters
        ----------
        net : str or callable, optional
            The net, for one that is not registered here.
        epoch : int, optional
            A stored epoch, default the last.
        """
        module = self.zoo.module_of(self.id, net)
        state = self.state_dict(epoch)
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise StoreError(
                f"the weights of {self.id!r} do not fit its net {self.row.get('net')!r}: "
                f"{' '.join(str(error).split())[:300]}; pass net= the factory it was grown with."
            ) from error
        return module.eval()

    def export(
        self, folder: str | Path, epoch: int | None = None, *, format: Format = "torch", dtype: str | None = None,
        license: str | None = None,
    ) -> Path:  # fmt: skip
        """Write it as a folder that plain PyTorch or transformers loads.

        See :func:`zoarium.zoo.model_folder.export_model`.
        """
        from zoarium.zoo.model_folder import export_model

        return export_model(self, folder, epoch, format=format, dtype=dtype, license=license)

    def __repr__(self) -> str:
        row = self.row
        axes = ", ".join(f"{k}={row[k]!r}" for k in [*self.zoo.axes, "seed"] if row.get(k) is not None)
        return f"Model({self.id!r}, {row['status']}{', ' + axes if axes else ''})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>"
            for k, v in {"status": self.status, **self.config}.items()
        )
        return f"<b>{escape(self.id)}</b><table>{cells}</table>"
