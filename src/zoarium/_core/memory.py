"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from zoarium._core.errors import ZoariumError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(amount: int | float | str) -> int:
    """Bytes in an amount such as ``"2GB"``, ``"512MiB"`` or a plain number.

    >>> parse_bytes("2GB"), parse_bytes("512MiB"), parse_bytes(1000)
    (2000000000, 536870912, 1000)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]i?)?b?\s*", str(amount).lower())
    size = float(match[1]) * UNITS[match[2] or ""] if match else 0
    if not 1 <= size < 2**60:
        raise ZoariumError(f"memory must be an amount such as '2GB' or '512MiB', found {amount!r}.")
    return int(size)
