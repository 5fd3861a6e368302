"""Tiny ImageNet: 200 classes of ImageNet at 64 x 64 pixels.

The archive holds JPEGs, ``train/WNID/images/*.JPEG`` and ``val/images/*.JPEG`` with ``val/val_annotations.txt``. They
are decoded once, into one file of bytes beside the archive; the validation images are the test split, as is usual,
because the test labels were never published. Le & Yang, "Tiny ImageNet visual recognition challenge", 2015.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import DataError, StoreError
from zoarium._core.extras import require
from zoarium._core.files import replacing
from zoarium.data.archives import Members
from zoarium.data.dataset import Dataset
from zoarium.data.download import Published, folders, published
from zoarium.data.published import Channels, image_task
from zoarium.data.registry import dataset

ARCHIVE = Published(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", 248_100_043,
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821", "90528d7ca1a48142e341f4ef8d21d0de",
)  # fmt: skip
FOLDER = "tiny-imagenet-200"
SIDE = 64
CLASSES, PER_CLASS, N_TEST = 200, 500, 10_000
CHANNELS = Channels((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
CACHE = "tiny-imagenet-200.decoded.safetensors"
PARTS = ("train.x", "train.y", "test.x", "test.y")
LARGEST = 4 << 20  # bytes of a member: the longest text file has 2.7 MB, a picture some 2 KB


@dataset(
    "tiny_imagenet",
    reference="Le & Yang 2015, Tiny ImageNet visual recognition challenge",
    extra="data",
    download="248 MB",
    licence="non-commercial research and education (ImageNet terms of access)",
)
def tiny_imagenet(
    *, size: int = 64, n_train: int = 100_000, n_test: int = 10_000, normalize: bool = True, seed: int = 0,
    root: str = "",
) -> Dataset:  # fmt: skip
    """Tiny ImageNet: 100,000 colour photographs of 64 x 64 pixels to train on, 10,000 to test, 200 classes.

    Needs the extra ``[data]`` (Pillow). Downloads tiny-imagenet-200.zip unless it, or the folder tiny-imagenet-200, is
    there, and decodes it once into a file of 1.35 GB. Held as float32, the whole takes 5.4 GB more, at 32 x 32 pixels a
    quarter of that.

    Parameters
    ----------
    size : {64, 32, 16}, default 64
        Pixels a side; fewer by means over squares.
    n_train, n_test : int
        Images to keep of each split, classes in proportion.
    normalize : bool, default True
        Channels shifted and scaled by the training set's mean and standard deviation; otherwise values in [0, 1].
    seed : int, default 0
        Draws which are kept, if not all.
    root : str, optional
        Folder of data sets, by default ``$ZOARIUM_DATA`` or the user's cache. It is no part of the name.

    Returns
    -------
    Dataset
        Inputs (3, size, size). Test images are the published validation images.

    Raises
    ------
    DataError
        If the archive is not there and cannot be downloaded, or is not the published one.
    MissingExtraError
        Without Pillow, for the first load.
    """
    if size not in (64, 32, 16):
        raise DataError(f"data 'tiny_imagenet': size must be 64, 32 or 16 pixels a side, found {size}.")
    source = _source(root)
    content = _cached(source) or _decode_and_keep(source)
    train, test = ((content[f"{kind}.x"], content[f"{kind}.y"].long()) for kind in ("train", "test"))
    return image_task(
        "tiny_imagenet", train, test, tuple(content["classes"]), CHANNELS, n_train=n_train, n_test=n_test,
        normalize=normalize, seed=seed, shrink=SIDE // size,
    )  # fmt: skip


def _source(root: str) -> Path:
    """The unpacked folder if there is one, otherwise the archive."""
    for base in folders("tiny_imagenet", root):
        if (base / FOLDER / "wnids.txt").is_file():
            return base / FOLDER
    return published(ARCHIVE, "tiny_imagenet", root)


def _cached(source: Path) -> dict[str, Any] | None:
    """What was decoded before, if it is whole and of this source."""
    from safetensors import SafetensorError, safe_open

    path = source.parent / CACHE
    with contextlib.suppress(SafetensorError, OSError, ValueError, KeyError, TypeError):
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            content: dict[str, Any] = {
                name: file.get_tensor(name) for name in ("train.x", "train.y", "test.x", "test.y")
            }
        if facts["source"] == _stamp(source) and facts["sha256"] == _digest(content):
            content["classes"] = json.loads(facts["classes"])
            return content
    return None


def _stamp(source: Path) -> str:
    """What tells one source from another: the archive is verified, of a folder the class list stands for it."""
    return ARCHIVE.sha256 if source.is_file() else hashlib.sha256((source / "wnids.txt").read_bytes()).hexdigest()


def _digest(content: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in PARTS:
        digest.update(memoryview(content[name].contiguous().numpy()).cast("B"))
    return digest.hexdigest()


def _decode_and_keep(source: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    content = _decode(source)
    tensors = {name: tensor for name, tensor in content.items() if name != "classes"}
    facts = {"source": _stamp(source), "sha256": _digest(content), "classes": json.dumps(content["classes"])}
    # In a read-only folder or on a full disk nothing is kept, and the next load decodes again.
    with contextlib.suppress(StoreError, SafetensorError), replacing(source.parent / CACHE) as path:
        save_file(tensors, path, facts)
    return content


def _decode(source: Path) -> dict[str, Any]:
    require("PIL.Image", "data", "the data set 'tiny_imagenet'")
    top = "" if source.is_dir() else f"{FOLDER}/"
    with Members(source, LARGEST, 125_000) as members:
        wnids = sorted(members.read(f"{top}wnids.txt").decode("ascii", "replace").split())
        if len(set(wnids)) != CLASSES or not all(w.isalnum() for w in wnids):
            raise DataError(f"{source}: wnids.txt must name {CLASSES} classes, found {len(set(wnids))}.")
        number = {wnid: n for n, wnid in enumerate(wnids)}
        names: list[str] = []
        labels: list[int] = []
        for wnid in wnids:
            of_class = [name for name in members.under(f"{top}train/{wnid}/images/") if name.endswith(".JPEG")]
            if len(of_class) != PER_CLASS:
                raise DataError(f"{source}: train/{wnid} must hold {PER_CLASS} JPEG images, found {len(of_class)}.")
            names += of_class
            labels += [number[wnid]] * PER_CLASS
        train = _images(members, names), torch.tensor(labels, dtype=torch.int16)
        rows = [line.split("\t") for line in _lines(members, f"{top}val/val_annotations.txt")]
        if len(rows) != N_TEST or not all(len(row) > 1 and row[1] in number for row in rows):
            raise DataError(
                f"{source}: val/val_annotations.txt must give a known class to {N_TEST:,} images, found "
                f"{len(rows):,} lines."
            )
        test = (
            _images(members, [f"{top}val/images/{row[0]}" for row in rows]),
            torch.tensor([number[row[1]] for row in rows], dtype=torch.int16),
        )
        words = dict(line.split("\t", 1) for line in _lines(members, f"{top}words.txt") if "\t" in line)
    classes = [f"{words.get(wnid, wnid).split(',')[0].strip()[:60]} ({wnid})" for wnid in wnids]
    return {"train.x": train[0], "train.y": train[1], "test.x": test[0], "test.y": test[1], "classes": classes}


def _lines(members: Members, name: str) -> list[str]:
    return members.read(name).decode("utf-8", "replace").splitlines()


def _images(members: Members, names: list[str]) -> Tensor:
    """JPEGs as (N, 3, 64, 64) uint8; grey ones get three equal channels."""
    from PIL import Image

    out = torch.empty(len(names), 3, SIDE, SIDE, dtype=torch.uint8)
    for n, name in enumerate(names):
        content = members.read(name)
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                if image.size != (SIDE, SIDE):  # known before any pixel is decoded
                    raise ValueError(f"it has {image.size[0]} x {image.size[1]} pixels, not {SIDE} x {SIDE}")
                pixels = np.array(image.convert("RGB"))
        except Exception as error:  # Pillow raises many kinds
            raise DataError(f"{members.path}: {name} is no image that can be used: {str(error)[:200]}.") from error
        out[n] = torch.from_numpy(pixels).permute(2, 0, 1)
    return out
