"""Run independent tasks on a Ray cluster: one of many machines, or this machine alone.

A worker there may share neither memory nor disk with us. What a task needs travels to it through Ray's object store,
and what it makes comes back the same way; only the driver (this process) writes files. A task that is lost with its
worker or its machine, or killed because memory ran out, is sent again, after the others.

Retries are ours, not Ray's: a task sent again takes along what was saved of it since (its `send` is called anew), and
one that kills its worker every time ends the run, where Ray's own retries after "out of memory" go round for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from zoarium._core.errors import ZoariumError
from zoarium._core.extras import require
from zoarium._core.parallel import available_cores
from zoarium._core.ray_worker import Post, Shared, serve, versions

TRIES = 4  # times a task is sent before we give up
SHARED = 1 << 30  # bytes of shared things, those that may be dropped, kept for tasks to come
POLL_S = 0.2
CONNECT_S = 5.0
KEEP_GOING = "what finished before is kept, run the same command again to resume."


class _Shelf:
    """What was put into the object store, so that it is put there once."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.kept: OrderedDict[Hashable, tuple[Shared, int]] = OrderedDict()

    def share(self, key: Hashable, make: Callable[[], Any], nbytes: int = 0) -> Shared:
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key][0]
        shared = Shared(self.ray.put(make()), lasting=not nbytes)
        self.kept[key] = shared, nbytes
        spare = sum(size for _, size in self.kept.values()) - SHARED
        for old, (_, size) in list(self.kept.items()):  # oldest first; tasks under way hold what they need themselves
            if spare > 0 and size and old != key:
                del self.kept[old]
                spare -= size
        return shared


def connect(address: str | None) -> Any:
    """Ray, connected to the cluster at `address`; by default that of RAY_ADDRESS, else one of this machine's own.

    A cluster of our own lives until this process ends. A process that is connected already stays so.
    """
    ray = require("ray", "ray", "backend='ray'")
    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    if wanted.startswith("ray://"):
        raise ZoariumError(
            f"{wanted} is the address of a Ray Client server, whose driver runs elsewhere than your files; run on a "
            "machine of the cluster with address='auto', or submit the command with: ray job submit."
        )
    if ray.is_initialized():
        ours = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", "local", ours):
            raise ZoariumError(
                f"this process is connected to the Ray cluster at {ours}, not to {address}; call ray.shutdown() first."
            )
        return ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if wanted == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"num_cpus": available_cores(), "include_dashboard": False}
    elif wanted != "auto":
        _knock(wanted)
    try:
        ray.init(address=wanted, **options)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ZoariumError(
            f"cannot connect to a Ray cluster at {wanted!r}: {first.rstrip('.')}; start one with 'ray start --head', "
            "set RAY_AUTH_MODE=token here if the cluster asks for one, or leave the address out to use this machine "
            "alone."
        ) from error
    return ray


def _knock(address: str) -> None:
    """Try the port: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if not host or not port.isdecimal():
            raise ValueError("it must be HOST:PORT or 'auto'")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ZoariumError(
            f"no Ray cluster answers at {address!r} ({reason}); look at its head with 'ray status', "
            "or leave the address out to use this machine alone."
        ) from error


def run_on_ray(
    function: Callable[[Any, Any], Any],
    tasks: Sequence[Any],
    *,
    address: str | None,
    workers: int | None,
    graceful: bool,
    on_report: Callable[[Any], None],
    send: Callable[[Any, Any], Any],
) -> Iterator[tuple[int, Any]]:
    """The backend "ray" of :func:`zoarium._core.parallel.run_tasks`."""
    if tasks:
        run = _Run(connect(address), function, tasks, workers, on_report, send)
        try:
            yield from run.results()
        finally:
            run.end(graceful)


class _Run:
    """Tasks of one call on their way."""

    def __init__(
        self,
        ray: Any,
        function: Callable[[Any, Any], Any],
        tasks: Sequence[Any],
        workers: int | None,
        on_report: Callable[[Any], None],
        send: Callable[[Any, Any], Any],
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.tasks, self.workers, self.on_report, self.send = ray, tasks, workers, on_report, send
        self.todo = deque(range(len(tasks)))
        self.attempts = [0] * len(tasks)
        self.running: dict[Any, int] = {}
        self.shelf = _Shelf(ray)
        self.expected = versions()
        self.function = self._put(function)
        self.serve = ray.remote(num_cpus=1, max_retries=0)(serve)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.post = ray.remote(num_cpus=0)(Post).options(scheduling_strategy=here, max_concurrency=10_000).remote()

    def results(self) -> Iterator[tuple[int, Any]]:
        """Send tasks, few at a time, and yield what comes back."""
        while self.todo or self.running:
            limit = self.workers or self._limit()
            while self.todo and len(self.running) < limit:
                self._submit(self.todo.popleft())
            for index, kind, content in self._finished():
                if kind == "result":
                    yield index, content
                elif kind == "error":
                    raise content
                elif kind == "crash":
                    raise RuntimeError(f"task {index} failed on a Ray worker: {content}")
                elif kind == "versions":
                    raise ZoariumError(self._disagreement(*content))
                elif kind == "unreadable":
                    raise ZoariumError(_unreadable(*content))
                elif self.attempts[index] < TRIES:  # lost
                    self.todo.append(index)
                else:
                    raise ZoariumError(
                        f"a Ray worker was lost {TRIES} times while it ran the same task (last: {content}); give a "
                        f"smaller --memory if memory ran out; {KEEP_GOING}"
                    )

    def end(self, graceful: bool) -> None:
        """Let tasks under way save, if they can, and leave nothing behind on the cluster."""
        from ray.exceptions import RayError

        try:
            with contextlib.suppress(RayError):
                if graceful and self.running:
                    self.ray.get(self.post.ask_to_stop.remote())
                    while self.running:
                        list(self._finished())
        finally:
            for ref in self.running:
                with contextlib.suppress(RayError):
                    self.ray.cancel(ref, force=True)
            with contextlib.suppress(RayError):
                self.ray.kill(self.post)

    def _limit(self) -> int:
        """Twice as many as cores now: none idles, a cluster that can grow sees that it should, memory stays bounded."""
        return max(2, 2 * int(self.ray.cluster_resources().get("CPU", 1)))

    def _submit(self, index: int) -> None:
        self.attempts[index] += 1
        task = self._put(self.send(self.tasks[index], self.shelf.share))
        ref = self.serve.remote(self.expected, (self.function, task), self.post, index, self.attempts[index])
        self.running[ref] = index

    def _put(self, value: Any) -> Any:
        try:
            return self.ray.put(value)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            first = str(error).strip().splitlines()[0]
            raise ZoariumError(
                f"this work cannot be sent to a Ray cluster ({first}); define your functions so that they can be "
                "pickled: without open files, locks or connections."
            ) from error

    def _finished(self) -> Iterator[tuple[int, str, Any]]:
        """Wait a little, pass messages on, then give tasks that ended: (index, kind, content)."""
        from ray.exceptions import RayActorError, RayError, RayTaskError

        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL_S)
        if ready:
            ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        try:
            messages = self.ray.get(self.post.take.remote())
        except RayActorError as error:
            raise ZoariumError(f"Ray lost the actor that carries reports to this process; {KEEP_GOING}") from error
        for index, attempt, message in messages:  # before the results: what a task hands over belongs to its result
            if attempt == self.attempts[index]:
                self.on_report(pickle.loads(message))
        for ref in ready:
            index = self.running.pop(ref)
            try:
                kind, content = self.ray.get(ref)
            except RayTaskError as error:
                if isinstance(error.cause, RayError):  # what the task needed went with another machine
                    kind, content = "lost", type(error.cause).__name__
                else:  # Ray could not even call us there
                    kind, content = "unreadable", ("a worker", str(error))
            except RayError as error:
                kind, content = "lost", type(error).__name__
            yield index, kind, content

    def _disagreement(self, host: str, found: dict[str, str | None]) -> str:
        name = next(name for name, here in self.expected.items() if found[name] != here)
        there = found[name] or "none"
        return (
            f"{host}, a machine of the Ray cluster, has {name} {there} and this process has {self.expected[name]}, so "
            "its results could differ; install the same versions on every machine."
        )


def _unreadable(host: str, text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    missing = next((line for line in reversed(lines) if "No module named" in line), None)
    what = missing.partition("No module named")[2].strip(" '.") if missing else ""
    if missing:
        return (
            f"{host} of the Ray cluster has no module {what!r}; install it on every machine, or send your own files "
            "along with: ray job submit --working-dir . -- COMMAND."
        )
    return f"{host} of the Ray cluster cannot run what was sent to it: {lines[-1] if lines else 'no reason given'}"
