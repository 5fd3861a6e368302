"""A population on disk, as a table whose rows are models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import polars as pl
import pydantic

from zoarium._core.errors import StoreError, unknown_name
from zoarium.zoo.manifest import DataInfo
from zoarium.zoo.model import Model
from zoarium.zoo.sharing import Sharing
from zoarium.zoo.sources import Sources
from zoarium.zoo.store import Store
from zoarium.zoo.tables import cell_table, closest, restrict, wide_table
from zoarium.zoo.verbs import Verbs

if TYPE_CHECKING:
    from zoarium.zoo.cohorts import CohortRef
    from zoarium.zoo.transaction import Transaction


class Zoo(Sources, Verbs, Sharing):
    """A population on disk; slices and filters of it are views that share its storage.

    Made by :meth:`open` (also ``za.open``), :meth:`create`, or ``za.grow``.

    Examples
    --------
    >>> import polars as pl
    >>> from zoarium.zoo import Zoo
    >>> zoo = Zoo.create(axes=["width"])
    >>> with zoo.writing() as transaction:
    ...     transaction.set_models(pl.DataFrame({"id": ["a", "b"], "status": "planned", "width": [2, 8]}))
    >>> zoo.where(pl.col("width") > 2).ids
    ['b']
    """

    def __init__(self, store: Store, ids: Sequence[str] | None = None) -> None:
        self.store = store
        self._ids = None if ids is None else list(ids)  # None: every model, also those added later
        self._frame: tuple[Any, pl.DataFrame] | None = None

    @classmethod
    def create(
        cls,
        path: str | Path | None = None,
        *,
        grid: Mapping[str, Any] | None = None,
        axes: Sequence[str] = (),
        load: str | None = None,
        temperature: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Zoo:
        """Make an empty zoo.

        Parameters
        ----------
        path : path, optional
            A folder that is empty or not there yet. By default a temporary one that is removed with the returned
            object; :meth:`save` keeps it.
        grid : mapping, optional
            The grid as plain values.
        axes : sequence of str
            Axes that vary, without the seed.
        load, temperature : str, optional
            Which of them is which.
        data : mapping of str to DataInfo or dict, optional
            What the models are trained on, by name.

        Raises
        ------
        StoreError
            If the folder holds something, or cannot be written.
        """
        described = {}
        for name, info in (data or {}).items():
            try:
                described[name] = DataInfo.model_validate(info)
            except pydantic.ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise StoreError(
                    f"the description of data {name!r} cannot be used: {place}: {first['msg']}."
                ) from error
        header = {"grid": None if grid is None else dict(grid), "axes": list(axes), "load": load}
        return cls(Store.create(path, **header, temperature=temperature, data=described))

    @classmethod
    def open(cls, path: str | Path) -> Zoo:
        """Open the zoo in a folder for reading; no lock is taken, and the folder may be read-only.

        Raises
        ------
        StoreError
            If the folder is no zoo, or one of a newer format.
        DamagedError
            If `zoo.json` or the table of models is not what was written.
        """
        zoo = cls(Store.open(path))
        _ = zoo.store.models  # damage there is said now, not at first use
        return zoo

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path.absolute()), self._ids)

    # ------------------------------------------------------------------ what it is

    @property
    def is_view(self) -> bool:
        """Whether this is a choice of the stored models, such as :meth:`where` makes."""
        return self._ids is not None

    @property
    def axes(self) -> list[str]:
        """Axes that vary, without the seed."""
        return list(self.store.manifest.axes)

    @property
    def load(self) -> str | None:
        """Axis of load (data per parameter)."""
        return self.store.manifest.load

    @property
    def temperature(self) -> str | None:
        """Axis of temperature (noise of training)."""
        return self.store.manifest.temperature

    @property
    def grid(self) -> dict[str, Any] | None:
        """The grid it was grown from, as plain values."""
        return self.store.manifest.grid

    @property
    def info(self) -> dict[str, Any]:
        """Header of `zoo.json`: format version, software, grid, axes, data, and whatever else was recorded."""
        header = self.store.manifest.model_dump(exclude={"files", "extra"})
        return {**self.store.manifest.extra, **header}

    def summary(self) -> dict[str, Any]:
        """The zoo in a few plain values: counts, axes with their values, what is stored."""
        table = self.table
        axes = {name: table[name].unique(maintain_order=True).to_list() for name in self.axes if name in table.columns}
        checkpoints = self.checkpoints
        return {
            "path": str(self.path),
            "models": len(table),
            "status": dict(sorted(table["status"].value_counts().iter_rows())),
            "axes": axes,
            "seeds": table["seed"].n_unique() if "seed" in table.columns else 0,
            "load": self.load,
            "temperature": self.temperature,
            "data": sorted(self.store.manifest.data),
            "epochs": sorted(checkpoints["epoch"].unique().to_list()),
            "measures": self.measures,
            "bytes": sum(info.size for info in self.store.manifest.files.values()),
        }

    # ------------------------------------------------------------------ models as a table

    @property
    def table(self) -> pl.DataFrame:
        """One row a model."""
        models = self.store.models
        if self._ids is None:
            return models
        if self._frame is None or self._frame[0] is not models:
            rows = self.store.rows
            self._frame = (models, models[[rows[i] for i in self._ids if i in rows]])
        return self._frame[1]

    @property
    def ids(self) -> list[str]:
        """Ids of the models, in the order of the table."""
        return self.table["id"].to_list()

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Model]:
        return (Model(self, i) for i in self.ids)

    def __contains__(self, id: object) -> bool:
        return id in self.store.rows if self._ids is None else id in self.ids

    @overload
    def __getitem__(self, key: int | str) -> Model: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Sequence[str] | pl.Series) -> Zoo: ...
    def __getitem__(self, key: Any) -> Model | Zoo:
        """One model by row or id; a view of several by slice or list."""
        if isinstance(key, str):
            return Model(self, self._known(key))
        if isinstance(key, slice):
            return Zoo(self.store, self.table["id"][key].to_list())
        if hasattr(key, "__index__"):
            row, n = key.__index__(), len(self)
            if not -n <= row < n:
                raise IndexError(f"model {row} of a zoo of {n}; rows go from 0 to {n - 1}.")
            return Model(self, self.table["id"][row])
        plain: Any = key.tolist() if hasattr(key, "tolist") else key  # numpy arrays and tensors
        if not isinstance(plain, Sequence | pl.Series):
            raise TypeError(f"a zoo is indexed by row, id, slice or list of these, not {type(key).__name__}")
        keys = list(plain)
        if keys and all(isinstance(k, bool) for k in keys):
            if len(keys) != len(self):
                raise StoreError(f"a mask of {len(keys)} values for {len(self)} models; give one value a model.")
            return Zoo(self.store, [i for i, keep in zip(self.ids, keys, strict=True) if keep])
        inside = None if self._ids is None else set(self.ids)
        chosen = [self._known(k, inside) if isinstance(k, str) else self[k].id for k in keys]
        return Zoo(self.store, list(dict.fromkeys(chosen)))

    def _known(self, id: str, inside: set[str] | None = None) -> str:
        known = self.store.rows if inside is None else inside
        if id not in known or (inside is None and self._ids is not None and id not in self.ids):
            raise StoreError(f"no model {id!r} among these {len(self)}.{closest(id, self.ids)}")
        return id

    def where(self, *predicates: pl.Expr, **equals: Any) -> Zoo:
        """The models for which every predicate holds, as a view.

        Parameters
        ----------
        *predicates : polars.Expr
            E.g. ``pl.col("width") > 8``.
        **equals
            Columns and the values they must have, e.g. ``batch_size=32``; a list means any of its values, None
            means empty.

        Raises
        ------
        StoreError
            For an unknown column, listing the columns, or a predicate that is none.
        """
        table = self.table
        wanted = list(predicates)
        for column, value in equals.items():
            if column not in table.columns:
                raise StoreError(unknown_name("column", column, table.columns))
            if isinstance(value, list | tuple | set | range):
                wanted.append(pl.col(column).is_in(list(value)))
            else:
                wanted.append(pl.col(column).eq_missing(value))
        try:
            found = table.filter(*wanted) if wanted else table
        except pl.exceptions.ColumnNotFoundError as error:
            column = str(error).splitlines()[0].strip().strip('"').removeprefix("unable to find column ").split(";")[0]
            raise StoreError(unknown_name("column", column.strip('"'), table.columns)) from error
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            raise StoreError(f"cannot filter the models: {str(error).splitlines()[0]}") from error
        view = Zoo(self.store, found["id"].to_list())
        view._frame = (self.store.models, found)
        return view

    def restrict(self, name: str, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of a stored table that speak of models (or cells) of this view only."""
        return frame if self._ids is None else restrict(name, frame, self.table["id"], self.cells)

    @property
    def history(self) -> pl.DataFrame:
        """Loss, accuracy and learning rate: one row a model and epoch."""
        return self.restrict("history", self.store.frame("history"))

    @property
    def checkpoints(self) -> pl.DataFrame:
        """Stored weights: one row a model and epoch, with file, row and digest."""
        return self.restrict("checkpoints", self.store.frame("checkpoints"))

    def cells(self) -> pl.DataFrame:
        """The cells: models that agree in every axis but the seed.

        Returns
        -------
        polars.DataFrame
            ``cell`` (such as ``width=8,batch_size=32``), the axes, ``ids``, and their number ``n``. Models that are
            planned or damaged belong to no cell; derived models form cells of their own.
        """
        return cell_table(self.table, self.axes)

    # ------------------------------------------------------------------ weights

    def cohorts(
        self, epoch: int | None = None, memory: int | None = None, *, include_diverged: bool = False
    ) -> list[CohortRef]:
        """Groups of models of one architecture; ``ref.load()`` stacks a group in memory.

        Parameters
        ----------
        epoch : int, optional
            A stored epoch; default each model's last.
        memory : int, optional
            Bytes of weights a group may have; larger groups are cut. Default no limit.
        include_diverged : bool, default False
            Whether models whose loss stopped being finite are included, where they have weights.
        """
        from zoarium.zoo.cohorts import plan_cohorts

        return plan_cohorts(self, epoch, memory, include_diverged)

    # ------------------------------------------------------------------ values

    @property
    def measures(self) -> list[str]:
        """Measures with stored values, by name."""
        names = [name.split("/")[1] for name in self.store.table_names if "/" in name]
        return sorted(set(names))

    def stored(self, measure: Any) -> pl.DataFrame | None:
        """All stored values of a measure, given as its name or its registered method; None if there are none."""
        name = measure if isinstance(measure, str) else measure.name
        for folder in ("measures", "pairs", "cells"):
            found = self.store.table(f"{folder}/{name}")
            if found is not None:
                return found
        return None

    def values(self, quantity: str) -> pl.DataFrame:
        """Stored values of a quantity: a row a model (``id``), pair (``a``, ``b``) or cell, with standard errors.

        Raises
        ------
        StoreError
            For a quantity that was not measured, listing those that were.
        """
        known: set[str] = set()
        names = [name for name in self.store.table_names if "/" in name]
        for name in sorted(names, key=lambda n: (n.split("/")[1] != quantity, n)):
            frame = self.store.table(name)
            if frame is None or "quantity" not in frame.columns:
                continue
            found = frame.filter(pl.col("quantity") == quantity)
            if len(found):
                return self.restrict(name, found)
            known |= set(frame["quantity"].unique().to_list())
        raise StoreError(unknown_name("measured quantity", quantity, known) + " Run zoo.measure(...) first.")

    @property
    def measured(self) -> pl.DataFrame:
        """The table of models with a column for each quantity measured of every model, at its latest epoch."""
        frames = [
            frame for name in self.store.table_names
            if name.startswith("measures/") and (frame := self.store.table(name)) is not None
        ]  # fmt: skip
        return wide_table(self.table, frames)

    # ------------------------------------------------------------------ writing

    @contextlib.contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Change the zoo: commits at the end of the block, takes everything back on an error.

        Raises
        ------
        LockedError
            If another process is writing.
        StoreError
            If the disk cannot be written; the zoo is then as it was.
        """
        from zoarium.zoo.transaction import Transaction

        with self.store.locked():
            transaction = Transaction(self.store)
            try:
                yield transaction
                transaction.commit()
            except BaseException:
                transaction.rollback()
                raise

    @contextlib.contextmanager
    def growing(self) -> Iterator[None]:
        """Hold the zoo for a long run of many transactions; at its end, weights nobody committed are removed."""
        with self.store.locked():
            yield
            self.store.settle(clean=True)

    def refresh(self) -> Zoo:
        """See what other processes have committed since this zoo was opened."""
        self.store.refresh()
        return self

    def check(self, *, repair: bool = False) -> pl.DataFrame:
        """Verify every file and every model; see :func:`zoarium.zoo.check.check_zoo`."""
        from zoarium.zoo.check import check_zoo

        report = check_zoo(self.path, repair=repair)
        self.store.refresh()
        return report

    def save(self, path: str | Path) -> Zoo:
        """Write this zoo, or the models of this view, to a new folder; see :func:`zoarium.zoo.export.save_zoo`."""
        from zoarium.zoo.export import save_zoo

        return save_zoo(self, path)

    # ------------------------------------------------------------------ shown

    def __repr__(self) -> str:
        from zoarium.zoo.show import zoo_text

        return zoo_text(self)

    def _repr_html_(self) -> str:
        from zoarium.zoo.show import zoo_html

        return zoo_html(self)


def _reopen(path: str, ids: list[str] | None) -> Zoo:
    return Zoo(Store.open(path), ids)
