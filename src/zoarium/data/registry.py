"""The registry of data sets, and loading one by a name such as ``digits`` or ``convection(beta=30)``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from zoarium._core.errors import DataError, unknown_name
from zoarium._core.registry import Registry
from zoarium.data.dataset import Dataset

DATA = Registry(
    "data",
    modules=(
        "zoarium.data.images", "zoarium.data.tabular", "zoarium.data.convection", "zoarium.data.patches",
        "zoarium.data.digits_on_photos",
        "zoarium.data.text", "zoarium.data.cifar", "zoarium.data.svhn", "zoarium.data.tiny_imagenet",
        "zoarium.data.openwebtext",
    ),
    error=DataError,
)  # fmt: skip

LONGEST_NAME = 500
PLACES = ("root",)  # parameters that say where data are, not what: no part of the name
_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_ARGUMENT = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*(?:'([^'\"]*)'|\"([^'\"]*)\"|([\w.+-]+))\s*")


def dataset(
    name: str, *, reference: str = "", extra: str = "", download: str = "", licence: str = "",
    tokenizer: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Dataset]], Callable[..., Dataset]]:  # fmt: skip
    """Register a factory of a data set under `name`.

    Parameters
    ----------
    name : str
        Name in grids, in tables and on the command line.
    reference : str
        Where the data come from.
    extra : str, optional
        The extra of zoarium it needs.
    download : str, optional
        Size of the files it downloads, or what must be there already; empty for data that are there offline.
    licence : str, optional
        Terms of the data.
    tokenizer : callable, optional
        For a language task: takes the same parameters and returns the tokenizer.

    Notes
    -----
    The factory returns a :class:`Dataset`. All its parameters are keyword-only with plain defaults (numbers, text,
    true or false) and can be set in a name: ``"convection(beta=30)"``. One called `root` says where files lie and
    does not become part of the name.

    Examples
    --------
    >>> import torch
    >>> from zoarium.data import from_arrays
    >>> @dataset("parity", reference="an example")
    ... def parity(*, bits: int = 4):
    ...     x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * bits)
    ...     return from_arrays(x, x.sum(1).long() % 2)
    >>> load("parity(bits=6)")
    Dataset('parity(bits=6)', 51 train + 13 test, input (6,), 2 classes)
    """
    return DATA.register(
        name, reference=reference, extra=extra, download=download, licence=licence, tokenizer=tokenizer
    )


def load(data: str | Dataset, **params: Any) -> Dataset:
    """A data set by name, made once a process.

    Parameters
    ----------
    data : str or Dataset
        A registered name, with parameters in brackets if wanted; a :class:`Dataset` is returned as it is.
    **params
        Parameters of the data set.

    Returns
    -------
    Dataset
        Its ``name`` loads the same data again. Shared by all callers: do not write into its tensors.

    Raises
    ------
    DataError
        For an unknown name or parameter, listing the known ones.
    MissingExtraError
        Where a package that ships the data is not installed.

    Examples
    --------
    >>> load("digits").in_shape, load("convection(beta=5)").name, load("convection", beta=5).name
    ((1, 8, 8), 'convection(beta=5)', 'convection(beta=5)')
    """
    if isinstance(data, Dataset):
        if params:
            raise DataError(f"{data.name!r} is made already and takes no parameters, found {', '.join(params)}.")
        return data
    name, inside = _parse(data)
    twice = sorted(set(inside) & set(params))
    if twice:
        raise DataError(f"{data!r}: {twice[0]!r} is given in the name and as an argument; give it once.")
    return _load(name, tuple(sorted(_checked(name, {**inside, **params}).items())))


def needs(name: str) -> str:
    """What a data set needs beside zoarium, in words: an extra, a download, files of yours, or nothing.

    >>> needs("iris"), needs("mnist_5k"), needs("tiny_imagenet")
    ('nothing', '[data]', '[data], download of 248 MB')
    """
    extra, download = (DATA[name].facts.get(fact, "") for fact in ("extra", "download"))
    if download[:1].isdigit():
        download = f"download of {download}"
    return ", ".join(part for part in (extra and f"[{extra}]", download) if part) or "nothing"


def tokenizer(data: str | Dataset, **params: Any) -> Any:
    """The tokenizer of a language task, to write and read its tokens.

    Parameters
    ----------
    data : str or Dataset
        A registered name, with parameters in brackets if wanted, or a data set loaded by one.
    **params
        Parameters of the data set.

    Returns
    -------
    Tokenizer
        With ``encode(text)``, ``decode(tokens)``, ``size`` and ``end``.

    Raises
    ------
    DataError
        For data that are no text, or not loaded by name.

    Examples
    --------
    >>> tokens = tokenizer("pydoc_topics")
    >>> tokens.decode(tokens.encode("for x in y:"))
    'for x in y:'
    """
    name, inside = _parse(data.name if isinstance(data, Dataset) else data)
    if isinstance(data, Dataset) and name not in DATA:
        raise DataError(
            f"data {data.name!r} was not loaded by name, so its tokenizer is not known here; make one with "
            "learn_tokenizer and give it to from_text."
        )
    make = DATA[name].facts.get("tokenizer")
    if make is None:
        known = ", ".join(key for key, method in DATA.items() if method.facts.get("tokenizer"))
        raise DataError(f"data {name!r} has no tokenizer; these have: {known}.")
    return make(**_checked(name, {**inside, **params}))


@lru_cache(maxsize=64)
def _load(name: str, params: tuple[tuple[str, Any], ...]) -> Dataset:
    made = DATA[name](**dict(params))
    return replace(made, name=full_name(name, dict(params)))


def axes_of_data(name: str) -> dict[str, Any]:
    """Parameters of a registered data set that a grid can vary, with their defaults; none for a name with brackets."""
    if name not in DATA:
        return {}
    known = inspect.signature(DATA[name].function).parameters.values()
    return {p.name: p.default for p in known if p.name not in PLACES}


def full_name(name: str, params: Mapping[str, Any]) -> str:
    """The one name of a data set with these parameters; those at their defaults are left out.

    >>> full_name("convection", {"beta": 30, "n_x": 32})
    'convection(beta=30)'
    """
    given = sorted(_checked(name, params).items())
    inside = ", ".join(f"{key}={_text(value)}" for key, value in given if key not in PLACES)
    return f"{name}({inside})" if inside else name


def _parse(text: Any) -> tuple[str, dict[str, Any]]:
    """Name and parameters in a text; nothing in it is evaluated."""
    match = _CALL.fullmatch(text) if isinstance(text, str) and len(text) <= LONGEST_NAME else None
    if match is None:
        shown = text if isinstance(text, str) and len(text) <= 60 else f"{str(text)[:60]}…"
        raise DataError(f"data must be named like 'digits' or 'convection(beta=30)', found {shown!r}.")
    name, inside = match[1], (match[2] or "").strip()
    params: dict[str, Any] = {}
    for part in inside.split(",") if inside else []:
        argument = _ARGUMENT.fullmatch(part)
        if argument is None:
            raise DataError(
                f"{text!r}: cannot read {part.strip()!r}; write parameters as key=value, such as beta=30, "
                "and text with other signs in quotes."
            )
        key, single, double, bare = argument.groups()
        if key in params:
            raise DataError(f"{text!r} gives {key!r} twice; give it once.")
        params[key] = _value(bare) if bare is not None else single if single is not None else double
    return name, params


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _checked(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that differ from their defaults, each of the kind of its default."""
    known = {p.name: p.default for p in inspect.signature(DATA[name].function).parameters.values()}
    out: dict[str, Any] = {}
    for key, value in params.items():
        if key not in known:
            raise DataError(unknown_name(f"parameter of data {name!r}", key, known))
        kind = type(known[key])
        if kind is float and type(value) is int:
            value = float(value)
        if kind in (bool, int, float, str) and type(value) is not kind:
            raise DataError(f"parameter {key!r} of data {name!r} takes {kind.__name__} values, found {value!r}.")
        if value != known[key]:
            out[key] = value
    return out


def _text(value: Any) -> str:
    """A value as it stands in a name; reading it back gives the value."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
