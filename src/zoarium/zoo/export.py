"""Models and zoos written somewhere else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import DamagedError, StoreError
from zoarium._core.files import write_bytes, write_error, write_text
from zoarium.zoo.cohorts import Place, load_places
from zoarium.zoo.foreign.reference import rebased
from zoarium.zoo.store import software_versions

if TYPE_CHECKING:
    from zoarium.zoo.model import Model
    from zoarium.zoo.zoo import Zoo


def export_model(model: Model, folder: str | Path, epoch: int | None = None) -> Path:
    """Write one model as ``model.safetensors`` and ``config.json``.

    Parameters
    ----------
    model : Model
        What to write.
    folder : path
        Where to; made if it is not there. A model that is there already is not replaced.
    epoch : int, optional
        A stored epoch, default the last.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    StoreError
        If the folder holds a model, or cannot be written.

    Notes
    -----
    ``config.json`` holds the architecture (net, its parameters, input shape, outputs), the configuration, the lineage
    and the SHA-256 of the weights. ``safetensors.torch.load_file`` reads the weights.
    """
    from safetensors.torch import save

    folder = Path(folder)
    for name in ("model.safetensors", "config.json"):
        if (folder / name).exists():
            raise StoreError(f"{folder} holds a {name} already; choose another folder.")
    place = model.place(epoch)
    content = save({k: v.clone() for k, v in model.state_dict(place.epoch).items()}, metadata={"format": "pt"})
    row = model.row
    data = model.zoo.store.manifest.data.get(str(row.get("data")))
    config: dict[str, Any] = {
        "format": "zoarium-model",
        "version": 1,
        "id": model.id,
        "epoch": place.epoch,
        "architecture": {
            "net": row.get("net"),
            "net_params": json.loads(row.get("net_params") or "{}"),
            "in_shape": list(data.in_shape) if data else None,
            "n_outputs": data.n_outputs if data else None,
        },
        "config": model.config,
        "data": data.model_dump(mode="json") if data else None,
        "lineage": model.lineage,
        "weights": {"file": "model.safetensors", "sha256": hashlib.sha256(content).hexdigest()},
        "software": software_versions(),
    }
    write_bytes(folder / "model.safetensors", content)
    write_text(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False, default=str) + "\n")
    return folder


def save_zoo(zoo: Zoo, path: str | Path) -> Zoo:
    """Write a zoo, or a view of one with its own models only, to a new folder.

    Every file is verified while it is copied. The copy becomes a zoo with its last step: a copy that was cut off is
    no zoo.

    Raises
    ------
    StoreError
        If the folder is not empty or cannot be written.
    DamagedError
        If a file is not what was written.
    """
    from zoarium.zoo.zoo import Zoo

    store = zoo.store
    header = {k: getattr(store.manifest, k) for k in ("grid", "axes", "load", "temperature", "data", "extra")}
    copy = Zoo.create(path, **{k: v for k, v in header.items() if k != "extra"})
    try:
        with copy.writing() as transaction:
            for name in store.table_names:
                frame = store.table(name)
                if frame is not None:
                    frame = rebased(frame, zoo.path, copy.path) if name == "checkpoints" else frame
                    transaction.replace(name, zoo.restrict(name, frame))
            if header["extra"]:
                transaction.update_header(**header["extra"])
            checkpoints = transaction.table("checkpoints")
            wanted: dict[str, list[tuple]] = {}
            if checkpoints is not None:
                for row in checkpoints.select("id", "epoch", "file", "row", "digest").iter_rows():
                    wanted.setdefault(row[2], []).append(row)
            for file, info in store.manifest.files.items():
                if file.startswith("data/") or (file in wanted and len(wanted[file]) == info.rows):
                    _copy(zoo, file, copy.path / file)
                    transaction.take_file(file, info)
                elif file in wanted:
                    _rewrite(zoo, transaction, file, [Place(*row) for row in wanted[file]])
    except BaseException:
        _forget(copy.path)
        raise
    return copy


def _copy(zoo: Zoo, file: str, target: Path) -> None:
    source = zoo.store.verified_path(file)
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(exist_ok=True)
        with source.open("rb") as reading, target.open("wb") as writing:
            while block := reading.read(2**22):
                digest.update(block)
                writing.write(block)
    except OSError as error:
        raise write_error(target, error) from error
    if digest.hexdigest() != zoo.store.info_of(file).sha256:
        raise DamagedError(f"{source} is not what was written; see: zoarium check {zoo.path}.")


def _rewrite(zoo: Zoo, transaction: Any, file: str, places: list[Place]) -> None:
    """Some rows of a weights file as a smaller file of the same name."""
    name = Path(file).stem.rpartition("@")[0] or Path(file).stem
    steps = zoo.store.frame("checkpoints").filter(pl.col("file") == file)["step"]
    transaction.add_weights(name, places[0].epoch, steps[0], [p.id for p in places], load_places(zoo.store, places))


def _forget(folder: Path) -> None:
    """Empty the folder of an unfinished copy; it was empty when the copy began."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
