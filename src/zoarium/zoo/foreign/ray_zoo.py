"""Read a zoo of the Ray era: a model a trial, with configuration, curves, checkpoints and stored measures."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.digest import canonical
from zoarium._core.errors import NetError, StoreError, ZoariumError, unknown_name
from zoarium.zoo.foreign.facts import without_prefix, wrapper_prefix
from zoarium.zoo.foreign.intake import Incoming, Weights
from zoarium.zoo.foreign.model import ForeignModel
from zoarium.zoo.foreign.nets import NetOfModels
from zoarium.zoo.foreign.ray_trial import Trial, choose_epochs, landscape
from zoarium.zoo.foreign.reader import read_model

if TYPE_CHECKING:
    from zoarium.zoo.zoo import Zoo

FORMATS = ("auto", "ray")
TRIAL_ID = re.compile(r"(?:^|_)([0-9a-f]{5,8}_\d{5})(?:_|$)")
RESNET = re.compile(r"resnet[_-]?(18|50)", re.IGNORECASE)
ANY_IMAGE = (32, 32)  # pixels, where no data say it; residual nets take any size


def read_zoo(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    format: str = "auto",
    epochs: str | Sequence[int] = "last",
    copy: bool = False,
    data: Any = None,
) -> Zoo:
    """Read a model zoo that other software wrote.

    Parameters
    ----------
    folder : path
        The zoo: a folder of trials (``params.json``, ``result.json``, ``checkpoint_*``), anywhere below it; or a
        folder of checkpoints of any kind.
    out : path, optional
        Where the zoarium zoo goes; by default a temporary one, which ``zoo.save`` keeps. An existing one is added to.
    format : {"auto", "ray"}, default "auto"
        What the folder is. "ray" takes trials without any ``checkpoint_*`` for trials too, and nothing else.
    epochs : str or sequence of int, default "last"
        Which checkpoints of each trial: ``last``, ``last:5``, ``every``, ``every:10``, or epochs.
    copy : bool, default False
        Copy weights instead of pointing at them.
    data : str or Dataset, optional
        What the models are measured on, where their net is one of ours.

    Returns
    -------
    Zoo
        A model a trial: ``width``, ``lr``, ``weight_decay``, ``batch_size``, ``seed`` and so on as columns, the whole
        configuration in ``trial_config``; axes, load and temperature set; curves in ``zoo.history``; stored measures
        of the loss landscape among ``zoo.measures``. What was skipped stands in ``zoo.info["skipped"]``.

    Raises
    ------
    StoreError
        If there is no such folder, or nothing in it can be read.

    Notes
    -----
    Residual networks whose tensors fit ``resnet18`` or ``resnet50`` get that net, so that they can be measured once
    their data are known. Losses in ``result.json`` were taken while training, with augmentation, where ours are taken
    in evaluation mode; Hessian and connectivity values are those of the whole cell, given to each of its models or
    pairs. ``zoo.info["measure_settings"]`` says so under the settings hash of each value.
    """
    from zoarium.zoo.foreign.adding import add
    from zoarium.zoo.zoo import Zoo

    if format not in FORMATS:
        raise StoreError(unknown_name("format of a zoo", format, FORMATS))
    path = Path(folder)
    if not path.is_dir():
        raise StoreError(f"there is no folder {path}; give the folder of a zoo.")
    if (path / "zoo.json").exists():
        raise StoreError(f"{path} is a zoo already; open it with za.open.")
    source = f"ray:{path}" if format == "ray" else str(path)
    if out is not None:
        return add(out, source, epochs=epochs, copy=copy, data=data).zoo
    zoo = Zoo.create()
    added = add(zoo, source, epochs=epochs, copy=copy, data=data)
    if not len(zoo):
        skipped = added.table.filter(state="skipped")
        first = f": {skipped['source'][0]}: {skipped['detail'][0]}" if len(skipped) else ""
        raise StoreError(f"nothing in {path} can be read ({len(skipped)} skipped{first.rstrip('.')}); check the path.")
    return zoo


def trial_candidates(
    trials: Sequence[Path], epochs: str | Sequence[int], data: Any
) -> Iterator[tuple[str, tuple[str, ...], Callable[[], Incoming]]]:
    """For each trial its source, the ids it could have, and how to read it."""
    choose_epochs([], epochs)  # a mistake is said before the work starts

    def reader(folder: Path, names: tuple[str, ...]) -> Callable[[], Incoming]:
        return lambda: read_trial(folder, names, epochs, data)

    for folder in trials:
        found = TRIAL_ID.search(folder.name)
        names = (found[1], folder.name) if found else (folder.name,)
        yield str(folder), names, reader(folder, names)


def read_trial(folder: Path, names: tuple[str, ...], epochs: str | Sequence[int], data: Any) -> Incoming:
    """One trial as a model on its way into a zoo.

    Raises
    ------
    StoreError
        If none of its checkpoints can be read.
    """
    if str(folder) != str(folder).encode("utf-8", "replace").decode():
        raise StoreError(f"the name of {folder} is not UTF-8, so a table cannot hold it; rename the folder.")
    trial = Trial.read(folder)
    files = trial.checkpoints()
    chosen = choose_epochs(sorted(files), epochs)
    weights: list[Weights] = []
    for epoch in chosen:
        try:
            weights.append(Weights(epoch, read_model(files[epoch]), files[epoch]))
        except ZoariumError as error:
            trial.problems.append(str(error).rstrip("."))
    if not weights:
        which = f"none of its {len(files)} checkpoints can be taken" if files else "it has no checkpoint"
        raise StoreError(f"{which}{'; ' + '; '.join(trial.problems) if trial.problems else ''}.")
    columns = trial.columns()
    plain = without_prefix(weights[-1].model, wrapper_prefix(weights[-1].model.tensors))
    try:
        columns |= net_columns(str(trial.config.get("model::type", "")), plain, data)
    except NetError as error:
        trial.problems.append(str(error).rstrip("."))
    return Incoming(
        names,
        str(folder),
        weights,
        columns=columns,
        history=trial.history(),
        published={e: {**landscape(line), **_curves(line)} for e, line in trial.results.items()},
        detail="; ".join(trial.problems),
    )


def _curves(line: dict[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("train_loss", "test_loss", "train_acc", "test_acc") if key in line}


def net_columns(kind: str, model: ForeignModel, data: Any) -> dict[str, Any]:
    """Net and parameters of a trial whose tensors are those of one of our residual networks; else nothing.

    Raises
    ------
    NetError
        If data are given and do not fit.
    """
    found = RESNET.search(kind)
    first, last = model.tensors.get("conv1.weight"), model.tensors.get("fc.weight")
    if not found or first is None or last is None or len(first.shape) != 4 or len(last.shape) != 2:
        return {}
    stem = {7: "imagenet", 3: "cifar"}.get(first.shape[-1])
    if stem is None:
        return {}
    params: dict[str, Any] = {"width": first.shape[0], "stem": stem}
    if data is None:
        params |= {"in_shape": [first.shape[1], *ANY_IMAGE], "n_outputs": last.shape[0]}
    try:
        net = NetOfModels(f"resnet{found[1]}", params, data, check=False)
        net.fit(model.name, model.tensors)
        if data is not None:
            net = NetOfModels(f"resnet{found[1]}", params, data)
    except (NetError, RuntimeError) as error:
        if data is not None:
            raise NetError(str(error)) from error
        return {}
    return {**net.columns(), "net_params": canonical(params)}


def root_of(trials: Sequence[Path]) -> Path:
    """The folder all trials lie in."""
    return Path(os.path.commonpath([trial.parent for trial in trials]))
