"""Markdown for cards: whatever a zoo holds stays text, in a sentence, a table, a block of code or the YAML on top."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

_PLAIN = re.compile(r"[A-Za-z0-9_.,:;=+@/ ()\[\]{}'\"-]+")
_SPECIAL = re.compile(r"([\\`*_\[\]|~$#!])")


def line(value: Any) -> str:
    """A value as one line of printable characters."""
    printable = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(printable.encode("utf-8", "replace").decode().split())


def text(value: Any) -> str:
    r"""A value as Markdown that shows just it: no emphasis, link, image, table cell or HTML comes of it.

    Examples
    --------
    >>> text("<b>|[x](y)|\n# z")
    '&lt;b&gt;\\|\\[x\\](y)\\| \\# z'
    """
    escaped = line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", escaped)


def code(value: Any) -> str:
    """A name or a value in the type of code; as plain text where it holds what could end that."""
    shown = line(value)
    return f"`{shown}`" if _PLAIN.fullmatch(shown) and shown.strip() else text(shown)


def block(content: str, language: str = "") -> str:
    """A block of code, fenced by more backticks than it holds in a row."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already, so give them as :func:`text` or :func:`code` does."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def front_matter(facts: Mapping[str, Any]) -> str:
    """The YAML on top of a card."""
    return f"---\n{yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=False, width=120)}---\n"
