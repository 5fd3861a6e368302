"""Where files that can be made or fetched again are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Folder of this user's cache: ``$ZOARIUM_CACHE``, else ``zoarium`` in the platform's folder for caches."""
    if os.environ.get("ZOARIUM_CACHE"):
        return Path(os.environ["ZOARIUM_CACHE"])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base or Path.home() / "AppData" / "Local") / "zoarium"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "zoarium"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoarium"


def data_folder() -> Path:
    """Where data sets are looked for and downloaded to: ``$ZOARIUM_DATA``, else ``data`` in the cache."""
    if os.environ.get("ZOARIUM_DATA"):
        return Path(os.environ["ZOARIUM_DATA"]).expanduser()
    return cache_folder() / "data"
