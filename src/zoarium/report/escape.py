"""Text from files, made harmless: nothing that a zoo holds can become markup or code."""

from __future__ import annotations

import html
import json
import math
from typing import Any

# In a <script> these could end the element or start a comment; the two line separators end a line of JavaScript.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def text(value: Any) -> str:
    """A value as HTML text or attribute.

    Examples
    --------
    >>> text('<b id="x">')
    '&lt;b id=&quot;x&quot;&gt;'
    """
    # A surrogate without its partner is no character and cannot be written as UTF-8.
    return html.escape(str(value).encode("utf-8", "replace").decode(), quote=True)


def embedded(value: Any) -> str:
    r"""A value as JSON that may stand inside a ``<script>`` element; numbers that JSON lacks become null.

    Examples
    --------
    >>> embedded({"id": "</script>", "loss": float("nan")})
    '{"id":"\\u003c/script\\u003e","loss":null}'
    """
    try:
        written = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError):  # something JSON lacks: look at every value
        written = json.dumps(_plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character, escape in _UNSAFE.items():
        written = written.replace(character, escape)
    return written


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
