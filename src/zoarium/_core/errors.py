"""What users see when something is wrong: one sentence that says what, where, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZoariumError(Exception):
    """Base of every error zoarium raises on purpose; the command line prints it and exits with 2."""


class GridError(ZoariumError):
    """A grid, axis or training setting that cannot be used."""


class DataError(ZoariumError):
    """Data that cannot be loaded or that a net cannot be trained on."""


class NetError(ZoariumError):
    """An architecture that cannot be built, stacked or matched with its data."""


class StoreError(ZoariumError):
    """A zoo on disk that cannot be read or written as asked."""


class LockedError(StoreError):
    """Another process is writing to this zoo."""


class DamagedError(StoreError):
    """A file of a zoo does not hold what was written to it."""


class HubError(StoreError):
    """The hub refused, could not be reached, or does not hold what was asked for."""


class MeasureError(ZoariumError):
    """A measure that cannot be computed as asked."""


class MissingExtraError(ZoariumError, ImportError):
    """An optional dependency is not installed."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that `name` is not a `kind`, guess what was meant, and list what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {str(name)!r}.{guess} Known: {', '.join(names) or 'none'}."
