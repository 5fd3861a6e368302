"""Run independent tasks side by side, one single-thread worker a core.

Small stacked programs are bound by the cost of calling kernels, so two processes with one thread each beat one process
with two threads, and Python threads lose to both (they fight over the interpreter). Workers are forked where the
platform can, which hands them tasks and data for free; elsewhere they are spawned and tasks must pickle.

A forked worker must not run polars: its thread pool does not survive a fork, and a query would wait for ever. Tables
are read before the fork and written after it; a query in a worker raises instead of hanging.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from zoarium._core.allocator import keep_freed_memory
from zoarium._core.errors import ZoariumError, unknown_name
from zoarium._core.extras import require


class Worker(Protocol):
    """What a task may ask of the worker that runs it."""

    @property
    def stopping(self) -> bool:
        """True once the user has interrupted: save and return early."""
        ...

    @property
    def remote(self) -> bool:
        """Whether this worker may share neither memory nor disk with its parent."""
        ...

    def report(self, message: Any) -> None:
        """Send a small message (progress) to the parent; it may come late, or be lost if the worker dies."""
        ...

    def hand_over(self, message: Any) -> None:
        """Send the parent what must arrive before the result does, of any size; waits until there is room for it."""
        ...


class Share(Protocol):
    """Puts what many tasks need where every worker can read it, once."""

    def __call__(self, key: Hashable, make: Callable[[], Any], nbytes: int = 0) -> Any:
        """Give what stands for ``make()``, whose ``load()`` returns it in a worker.

        With `nbytes` it is dropped once newer ones need the room; without, it stays to the end.
        """
        ...


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block and put the user's setting back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Here:
    """The worker of a task that runs in this very process."""

    on_report: Callable[[Any], None]
    stopping: bool = False
    remote = False

    def report(self, message: Any) -> None:
        self.on_report(message)

    hand_over = report


@dataclass
class _Child:
    """The worker of a task that runs in a process of its own."""

    pipe: Connection
    stop: Any
    remote = False

    @property
    def stopping(self) -> bool:
        return self.stop.is_set()

    def report(self, message: Any) -> None:
        self.pipe.send(("report", None, message))

    hand_over = report


def _end_with_parent() -> None:
    """End this worker as soon as its parent is gone: an orphan would go on, and hold the locks it inherited."""
    parent = mp.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _serve(function: Callable[[Any, Worker], Any], tasks: Sequence[Any], pipe: Connection, stop: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what an interrupt means; it ends us with SIGKILL
    _end_with_parent()
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    _forbid_polars()
    worker = _Child(pipe, stop)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone: so are we
        while (index := pipe.recv()) is not None:
            try:
                result = ("result", index, function(tasks[index], worker))
            except ZoariumError as error:
                result = ("error", index, error)
            except BaseException as error:
                result = ("crash", index, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
            pipe.send(result)


@contextlib.contextmanager
def _interrupt_asks(here: _Here) -> Iterator[None]:
    """The first interrupt asks the running task to save and stop, the second raises as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: Any) -> None:
        if here.stopping:
            raise KeyboardInterrupt
        here.stopping = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _forbid_polars() -> None:
    import polars as pl

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("polars cannot run in a forked worker; read tables before the tasks start")

    pl.LazyFrame.collect = refuse
    pl.LazyFrame._collect_eager = refuse


def _context() -> Any:
    import torch

    forkable = sys.platform.startswith("linux") and not (torch.cuda.is_available() and torch.cuda.is_initialized())
    return mp.get_context("fork" if forkable else "spawn")


BACKENDS = ("local", "ray")


def check_backend(backend: str, address: str | None) -> None:
    """Refuse an unknown backend, an address without a cluster, or Ray where it is not installed."""
    if backend not in BACKENDS:
        raise ZoariumError(unknown_name("backend", backend, BACKENDS))
    if backend == "ray":
        require("ray", "ray", "backend='ray'")
    elif address is not None:
        raise ZoariumError(f"address {address!r} is of a cluster, but the backend is 'local'; add backend='ray'.")


def run_tasks(
    function: Callable[[Any, Worker], Any],
    tasks: Sequence[Any],
    *,
    backend: str = "local",
    address: str | None = None,
    workers: int | None = None,
    graceful: bool = False,
    on_report: Callable[[Any], None] = lambda message: None,
    send: Callable[[Any, Share], Any] = lambda task, share: task,
) -> Iterator[tuple[int, Any]]:
    """Yield ``(index, function(tasks[index], worker))`` as tasks finish; put long tasks first.

    Parameters
    ----------
    function : callable
        Called with a task and its :class:`Worker`.
    tasks : sequence
        Independent pieces of work.
    backend : {"local", "ray"}, default "local"
        Worker processes of this one, or tasks on a Ray cluster (:mod:`zoarium._core.ray_tasks`).
    address : str, optional
        The Ray cluster; by default that of RAY_ADDRESS, else one of this machine's own.
    workers : int, optional
        Tasks that run side by side; default one a core, never more than there are. With 1 local worker the tasks run
        here, in order, on one torch thread.
    graceful : bool, default False
        Whether tasks watch ``worker.stopping`` and save when it turns true. If so, an interrupt asks them to, waits,
        and is then raised; otherwise it ends them at once. A second interrupt always does.
    on_report : callable
        Receives what tasks report and hand over.
    send : callable
        Called with a task and a :class:`Share` just before the task goes to a worker that may share neither memory nor
        disk with us, at each try anew; returns what goes in its place. Not called for local workers.

    Raises
    ------
    ZoariumError
        What a task raised, or one sentence about a worker that died.

    Notes
    -----
    When the consumer stops early, late results are yielded no more.
    """
    check_backend(backend, address)
    if backend == "ray":
        from zoarium._core.ray_tasks import run_on_ray

        return run_on_ray(
            function, tasks, address=address, workers=workers, graceful=graceful, on_report=on_report, send=send
        )
    return _run_here(function, tasks, workers, graceful, on_report)


def _run_here(
    function: Callable[[Any, Worker], Any],
    tasks: Sequence[Any],
    workers: int | None,
    graceful: bool,
    on_report: Callable[[Any], None],
) -> Iterator[tuple[int, Any]]:
    workers = min(workers or available_cores(), len(tasks))
    if workers <= 1:
        here = _Here(on_report)
        for index, task in enumerate(tasks):
            with torch_threads(1), _interrupt_asks(here) if graceful else contextlib.nullcontext():
                result = function(task, here)
            if here.stopping:
                raise KeyboardInterrupt
            yield index, result
        return

    context = _context()
    stop = context.Event()
    pipes: dict[Connection, Any] = {}
    queue = iter(range(len(tasks)))
    try:
        for _ in range(workers):  # fork before any task starts
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(function, tasks, theirs, stop), daemon=True)
            try:
                process.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:  # only where workers are spawned
                raise ZoariumError(
                    f"this work cannot be sent to worker processes here ({error}); define your functions in a module "
                    "that can be imported, or use workers=1."
                ) from error
            theirs.close()
            pipes[ours] = process
            ours.send(next(queue))
        busy = set(pipes)
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                try:
                    kind, index, content = pipe.recv()
                except (EOFError, ConnectionResetError):
                    pipes[pipe].join()
                    raise ZoariumError(_how_it_died(pipes[pipe].exitcode)) from None
                if kind == "report":
                    on_report(content)
                    continue
                if kind == "error":
                    raise content
                if kind == "crash":
                    raise RuntimeError(f"task {index} failed in a worker process: {content}")
                following = next(queue, None)
                pipe.send(following)
                if following is None:
                    busy.discard(pipe)
                yield index, content
    finally:
        if graceful:
            stop.set()
        try:
            for pipe, process in pipes.items():
                with contextlib.suppress(OSError, ValueError):
                    pipe.send(None)
                while graceful and process.is_alive():  # drain, so that a worker blocked on a full pipe can end
                    with contextlib.suppress(EOFError, OSError):
                        if pipe.poll(0.05):
                            pipe.recv()
        finally:
            for pipe, process in pipes.items():
                if process.is_alive():
                    process.kill()
                process.join()
                pipe.close()


def _how_it_died(code: int | None) -> str:
    cause = f"was ended by signal {-code}" if code and code < 0 else f"ended with code {code}"
    hint = " (often: out of memory; give a smaller --memory or fewer --workers)" if code == -signal.SIGKILL else ""
    return f"a worker process {cause}{hint}; what finished before is kept, run the same command again to resume."
