"""Optional dependencies: imported at first use, with the install line when they are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from zoarium._core.errors import MissingExtraError


def require(module: str, extra: str, why: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Parameters
    ----------
    module : str
        Name to import.
    extra : str
        The extra of zoarium that installs it.
    why : str
        What needs it, as the subject of the error sentence.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{why} needs {package}, which is not installed; run: pip install 'zoarium[{extra}]'."
        ) from error
