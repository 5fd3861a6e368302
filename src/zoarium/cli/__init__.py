"""The command line: parse, call one library function, print its result."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``zoarium`` command."""
    from zoarium.cli.app import run

    run()
