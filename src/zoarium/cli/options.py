"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ZooPath = Annotated[Path, typer.Argument(metavar="ZOO", help="Folder of a zoo.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Workers = Annotated[int | None, typer.Option("--workers", "-w", min=1, help="Worker processes; default one a core.")]
Backend = Annotated[str, typer.Option("--backend", help="local (this machine) or ray (a cluster).")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="Ray cluster: auto or HOST:PORT; default RAY_ADDRESS, else one of this machine's own."
    ),
]
Cores = Annotated[
    int | None,
    typer.Option("--cores", min=1, help="Cores the work is cut for, such as a cluster's; default this machine's."),
]
Memory = Annotated[str, typer.Option("--memory", help="Budget of each worker, such as 2GB.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting; may be given again.")
]
