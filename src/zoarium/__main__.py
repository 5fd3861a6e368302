"""``python -m zoarium`` is the ``zoarium`` command."""

from zoarium.cli import main

main()
