"""Copy the weights a zoo points at into it, so that it needs no other file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from zoarium.zoo.foreign.copying import check_storable, copy_weights
from zoarium.zoo.foreign.intake import file_name
from zoarium.zoo.foreign.reference import COLUMNS, is_reference, open_reference
from zoarium.zoo.store import NEEDED

if TYPE_CHECKING:
    from zoarium.zoo.zoo import Zoo


def take_in(zoo: Zoo) -> Zoo:
    """Copy what this zoo, or this view of it, points at; see :meth:`Zoo.copy_weights`."""
    rows = [row for id in zoo.ids for row in zoo.store.checkpoints_of(id) if is_reference(row["file"])]
    for row in rows:
        check_storable(open_reference(zoo.store, row))
    with zoo.writing() as transaction:
        for row in rows:
            model = open_reference(zoo.store, row)
            name = file_name(row["id"])
            written = copy_weights(zoo.path, name, row["epoch"], row["step"], row["id"], model, row["digest"])
            transaction.take_file(written.name, written.info)
            copied = {**row, **dict.fromkeys(COLUMNS), "file": written.name, "row": 0}
            frame = pl.DataFrame([copied], schema={**NEEDED["checkpoints"], **COLUMNS})
            transaction.upsert("checkpoints", frame, key=["id", "epoch"])
    return zoo
