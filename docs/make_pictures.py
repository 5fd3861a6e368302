"""Draw the pictures of the README and the docs from a zoo: ``python docs/make_pictures.py demo-zoo``.

Writes to ``docs/pictures``. Without a zoo it grows the demo's in a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import zoarium as za
from zoarium.report import collect, save_charts

PICTURES = {"phases": "png", "effect_aligned_averaging_delta": "svg", "tracking": "svg"}


def main(zoo_path: str | None) -> None:
    """Draw the pictures from the zoo at `zoo_path`, or from a fresh demo."""
    with tempfile.TemporaryDirectory() as folder:
        if zoo_path is None:
            from zoarium.studies.demo import run_demo

            zoo = run_demo(Path(folder) / "digits-mlp").zoo
        else:
            zoo = za.open(zoo_path)
        data = collect(zoo)
        for name, form in PICTURES.items():
            print(*save_charts(data, Path(__file__).parent / "pictures", formats=(form,), names=(name,)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
