"""What an interrupt or a polite end (SIGTERM) means on the command line: one line, and the code a shell expects."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM


class Interrupted(SystemExit):
    """The command was interrupted and has said so."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Treat SIGTERM like an interrupt, so that work is saved, but exit with 143; say one line if nobody has."""
    terminated = False

    def end(signum: int, frame: Any) -> None:
        nonlocal terminated
        terminated = True
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)  # whoever waits for an interrupt is asked the same way
        else:
            raise KeyboardInterrupt  # interrupts are ignored, as under nohup; this is not to be

    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if here else None
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        if not isinstance(stop, Interrupted):
            from zoarium.cli.output import err

            err.print("interrupted: nothing is half-written; run the same command again.")
        raise SystemExit(TERMINATED if terminated else INTERRUPTED) from None
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)
