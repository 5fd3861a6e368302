"""Digests: one canonical text for settings, one hash for files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces: equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def settings_hash(value: Any, length: int = 12) -> str:
    """A short hexadecimal digest of any JSON-like settings."""
    return hashlib.blake2b(canonical(value).encode(), digest_size=16).hexdigest()[:length]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
