"""From rows on disk to stacked models in memory, verified on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.reference import is_reference, open_reference
from zoarium.zoo.store import Store
from zoarium.zoo.weights import read_rows, row_digests

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoarium.zoo.cohort import Cohort
    from zoarium.zoo.zoo import Zoo


@dataclass(frozen=True)
class Place:
    """Where the weights of one model at one epoch lie, and their digest."""

    id: str
    epoch: int
    file: str
    row: int
    digest: str


def load_places(store: Store, places: Sequence[Place]) -> dict[str, Tensor]:
    """Stacked tensors (len(places), *shape), each row verified by its digest.

    Raises
    ------
    DamagedError
        Naming the file and the model whose weights are not what was written.
    """
    import torch

    by_file: dict[str, list[int]] = {}
    for n, place in enumerate(places):
        by_file.setdefault(place.file, []).append(n)
    parts: list[dict[str, Tensor]] = []
    for file, members in by_file.items():
        if is_reference(file):
            parts.append(_foreign_tensors(store, [places[n] for n in members]))
            continue
        path = store.verified_path(file)
        tensors = read_rows(path, [places[n].row for n in members])
        for n, digest in zip(members, row_digests(tensors), strict=True):
            if digest != places[n].digest:
                raise DamagedError(
                    f"{path}: the weights of model {places[n].id!r} at epoch {places[n].epoch} are not what was "
                    f"written (row {places[n].row}); restore the file from a copy, or set the model aside with: "
                    f"zoarium check {store.root} --repair."
                )
        parts.append(tensors)
    if len(parts) == 1:
        return parts[0]
    for file, part in zip(by_file, parts, strict=True):
        if [(k, v.shape[1:], v.dtype) for k, v in sorted(part.items())] != [
            (k, v.shape[1:], v.dtype) for k, v in sorted(parts[0].items())
        ]:
            raise StoreError(
                f"{file} and {next(iter(by_file))} hold tensors of different names or shapes; "
                "load models of one architecture together."
            )
    order = torch.tensor([n for members in by_file.values() for n in members]).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}


def _foreign_tensors(store: Store, places: Sequence[Place]) -> dict[str, Tensor]:
    """Tensors (len(places), *shape) of one foreign model, verified by the SHA-256 of its files."""
    import torch

    place = places[0]
    row = next(row for row in store.checkpoints_of(place.id) if row["epoch"] == place.epoch)
    parts = ((name, tensor.unsqueeze(0)) for name, tensor in open_reference(store, row))
    if len(places) == 1:
        return dict(parts)
    return {name: torch.cat([tensor] * len(places)) for name, tensor in parts}


@dataclass(frozen=True)
class CohortRef:
    """Models of one architecture that fit in memory together, not loaded yet.

    Parameters
    ----------
    ids : tuple of str
        The models, in the order of the zoo's table.
    epochs : tuple of int
        The checkpoint each is loaded from.
    arch : str
        Their architecture, as in the table.
    nbytes : int
        Bytes of their weights, buffers included.
    """

    zoo: Zoo
    ids: tuple[str, ...]
    epochs: tuple[int, ...]
    arch: str
    nbytes: int
    places: tuple[Place, ...]
    module: nn.Module | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_params(self) -> int:
        """Parameters of one model."""
        known = self.zoo.row_of(self.ids[0]).get("n_params")
        if known is not None:
            return known
        return sum(p.numel() for p in self.zoo.module_of(self.ids[0]).parameters())

    def ready(self) -> CohortRef:
        """The same with its architecture built: to load it then takes no look at a table, as in a forked worker."""
        return self if self.module is not None else replace(self, module=self.zoo.module_of(self.ids[0]))

    def load(self) -> Cohort:
        """Read and verify the weights.

        Raises
        ------
        DamagedError
            If any model's weights are not what was written.
        StoreError
            If the stored tensors do not fit the architecture.
        """
        from zoarium.zoo.cohort import Cohort

        module = self.ready().module
        assert module is not None
        tensors = load_places(self.zoo.store, self.places)
        if self.zoo.row_of(self.ids[0])["status"] == "foreign":
            tensors = _as_module(tensors, module)
        params = {name: p.shape for name, p in module.named_parameters()}
        buffers = {name: b.shape for name, b in module.named_buffers() if name in module.state_dict()}
        for name, shape in {**params, **buffers}.items():
            found = tuple(tensors[name].shape[1:]) if name in tensors else None
            if found != tuple(shape):
                raise StoreError(
                    f"model {self.ids[0]!r}: tensor {name!r} is stored as {found}, its net has {tuple(shape)}; "
                    "was the net changed since? Give the original to zoo.attach_net."
                )
        return Cohort(
            self.ids, {name: tensors[name] for name in params}, module, {name: tensors[name] for name in buffers}
        )

    def __repr__(self) -> str:
        return f"CohortRef({len(self.ids)} models of {self.arch}, {self.nbytes / 1e6:.3g} MB)"


def _as_module(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Foreign tensors in the net's types, with the counters of batch norm that old checkpoints lack."""
    n = len(next(iter(tensors.values())))
    for name, own in module.state_dict().items():
        found = tensors.get(name)
        if found is None and name.endswith("num_batches_tracked"):
            tensors[name] = own.expand(n, *own.shape).clone()
        elif found is not None and found.is_floating_point() and own.is_floating_point():
            tensors[name] = found.to(own.dtype)
    return tensors


LOADABLE = ("trained", "foreign")


def places_of(zoo: Zoo, epoch: int | None, ids: pl.DataFrame) -> pl.DataFrame:
    """Checkpoints (id, epoch, file, row, digest) of the models in `ids`, in their order; null where there is none."""
    checkpoints = zoo.store.frame("checkpoints").select("id", "epoch", "file", "row", "digest")
    if len(ids) < len(checkpoints):
        checkpoints = checkpoints.join(ids, on="id", how="semi")
    if epoch is not None:
        checkpoints = checkpoints.filter(pl.col("epoch") == epoch)
    else:
        checkpoints = checkpoints.filter(pl.col("epoch") == pl.col("epoch").max().over("id"))
    return ids.join(checkpoints, on="id", how="left", maintain_order="left")


def plan_cohorts(zoo: Zoo, epoch: int | None, memory: int | None, include_diverged: bool) -> list[CohortRef]:
    """Group the models of a view by architecture and cut the groups to fit `memory` bytes."""
    table = zoo.table
    if not len(table):
        return []
    if "arch" not in table.columns:
        raise StoreError(f"{zoo.path}: the models have no column 'arch', so they cannot be stacked.")
    wanted = [*LOADABLE, "diverged"] if include_diverged else list(LOADABLE)
    models = table.filter(pl.col("status").is_in(wanted))
    if "net" in table.columns:  # a foreign model runs once somebody has said what net it is
        models = models.filter((pl.col("status") != "foreign") | pl.col("net").is_not_null())
    models = models.select("id", "status", "arch")
    if not len(models):
        return []
    found = places_of(zoo, epoch, models.select("id")).with_columns(models["status"], models["arch"])
    missing = found.filter(pl.col("file").is_null())
    if include_diverged:
        missing = missing.filter(pl.col("status") != "diverged")
    if len(missing):
        one = missing["id"][0]
        has = sorted(zoo.store.frame("checkpoints").filter(pl.col("id") == one)["epoch"].to_list())
        where = f"at epoch {epoch}" if epoch is not None else "at all"
        raise StoreError(
            f"model {one!r} has no checkpoint {where}; it has epochs: {', '.join(map(str, has)) or 'none'}. "
            "Choose one of these, or leave the model out with zoo.where()."
        )
    found = found.drop_nulls("file")
    refs: list[CohortRef] = []
    for (arch,), group in found.group_by("arch", maintain_order=True):
        refs += _chunks(zoo, str(arch), group, memory)
    return refs


def _row_bytes(zoo: Zoo, id: str, epoch: int, file: str) -> int:
    """Bytes of one model of a file."""
    if not is_reference(file):
        return zoo.store.info_of(file).row_bytes
    return next(row["nbytes"] for row in zoo.store.checkpoints_of(id) if row["epoch"] == epoch)


def _chunks(zoo: Zoo, arch: str, group: pl.DataFrame, memory: int | None) -> Iterator[CohortRef]:
    row_bytes = max(_row_bytes(zoo, *row) for row in group.select("id", "epoch", "file").unique("file").iter_rows())
    step = len(group) if memory is None else max(1, int(memory) // max(1, row_bytes))
    for start in range(0, len(group), step):
        part = group[start : start + step]
        rows = part.select("id", "epoch", "file", "row", "digest").iter_rows()
        yield CohortRef(
            zoo, tuple(part["id"]), tuple(part["epoch"]), arch, row_bytes * len(part), tuple(Place(*r) for r in rows)
        )
