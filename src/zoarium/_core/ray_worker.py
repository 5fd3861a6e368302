"""The far end of a task on Ray: what a worker process runs, and how it speaks with the driver."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
import traceback
from collections import OrderedDict
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from zoarium._core.allocator import keep_freed_memory
from zoarium._core.errors import ZoariumError
from zoarium._core.extras import require

ROOM = 64 << 20  # bytes handed over that may wait for the driver
ASK_S = 0.2  # how often a task asks whether it should stop
FETCHED = 4  # shared things a worker keeps for its next task


class Post:
    """Carries messages from tasks to the driver, and the wish to stop from the driver to tasks; an actor."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int, bytes]] = []
        self.bytes = 0
        self.stop = False

    async def send(self, index: int, attempt: int, message: bytes, patient: bool) -> None:
        """Take a message; a patient sender waits until there is room."""
        while patient and self.bytes > ROOM:
            await asyncio.sleep(0.02)
        self.messages.append((index, attempt, message))
        self.bytes += len(message)

    async def take(self) -> list[tuple[int, int, bytes]]:
        """All messages since the last call: (task, attempt, pickle)."""
        taken, self.messages, self.bytes = self.messages, [], 0
        return taken

    async def ask_to_stop(self) -> None:
        """Tell every task that asks."""
        self.stop = True

    async def stopping(self) -> bool:
        """Whether tasks should save and return."""
        return self.stop


@dataclass
class _RayWorker:
    """The worker of a task that runs somewhere on the cluster."""

    ray: Any
    post: Any
    index: int
    attempt: int
    remote = True

    def __post_init__(self) -> None:
        self._stopping = False
        self._asked: Any = None
        self._when = time.monotonic()

    @property
    def stopping(self) -> bool:
        # asking costs a message, so we look at the last answer and ask at most once a ASK_S
        if self._asked is not None and self.ray.wait([self._asked], timeout=0)[0]:
            self._stopping, self._asked = self.ray.get(self._asked), None
        if self._asked is None and not self._stopping and time.monotonic() - self._when > ASK_S:
            self._asked, self._when = self.post.stopping.remote(), time.monotonic()
        return self._stopping

    def report(self, message: Any) -> None:
        self.post.send.remote(self.index, self.attempt, self.ray.cloudpickle.dumps(message), False)

    def hand_over(self, message: Any) -> None:
        content = self.ray.cloudpickle.dumps(message)
        self.ray.get(self.post.send.remote(self.index, self.attempt, content, True))


@dataclass(frozen=True)
class Shared:
    """Stands for a value in Ray's object store."""

    ref: Any
    lasting: bool  # needed by tasks to come: a worker process keeps it

    def load(self) -> Any:
        """The value, in whichever process."""
        return _fetch(self.ref) if self.lasting else require("ray", "ray", "backend='ray'").get(self.ref)


_fetched: OrderedDict[str, Any] = OrderedDict()  # in a worker: the function and data sets of late


def _fetch(ref: Any) -> Any:
    """A value from the object store, kept in this process for the next task."""
    key = ref.hex()
    if key not in _fetched:
        _fetched[key] = require("ray", "ray", "backend='ray'").get(ref)
        while len(_fetched) > FETCHED:
            _fetched.popitem(last=False)
    _fetched.move_to_end(key)
    return _fetched[key]


def versions() -> dict[str, str | None]:
    """Versions that a driver and its workers must agree on; builds for other processors ("+cpu") count as the same."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:2]))}
    for package in ("zoarium", "torch", "numpy"):
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = None
    return found


def serve(expected: dict[str, str | None], refs: tuple[Any, Any], post: Any, index: int, attempt: int) -> Any:
    """What runs on a worker: one task, on one thread."""
    found = versions()
    if found != expected:
        return "versions", (socket.gethostname(), found)
    import torch

    ray = require("ray", "ray", "backend='ray'")
    torch.set_num_threads(1)
    keep_freed_memory()  # the process is of our job alone
    if ray.get(post.stopping.remote()):
        return "skipped", None
    try:
        function, task = _fetch(refs[0]), ray.get(refs[1])
    except ray.exceptions.RaySystemError as error:  # what was sent cannot be rebuilt here
        return "unreadable", (socket.gethostname(), str(error))
    try:
        return "result", function(task, _RayWorker(ray, post, index, attempt))
    except (ZoariumError, ray.exceptions.RayError) as error:
        if isinstance(error, ZoariumError):
            return "error", error
        raise
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
