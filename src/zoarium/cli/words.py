"""What words on the command line mean."""

from __future__ import annotations

from typing import Any

import yaml

from zoarium._core.errors import ZoariumError


def escape(text: str) -> str:
    """Text as rich prints it letter by letter."""
    from rich.markup import escape as plain

    return plain(text)


def settings_of(pairs: list[str] | None) -> dict[str, Any]:
    """``["samples=100", "layers=[fc1, logits]"]`` as a mapping; values are YAML."""
    settings = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ZoariumError(f"--set takes KEY=VALUE, found {pair!r}.")
        try:
            settings[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ZoariumError(f"--set {key}: {value!r} is not a valid value.") from error
    return settings


def checkpoints_of(text: str) -> str | list[int]:
    """``5,10,30`` as a list; other words as they are."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        return text
