import multiprocessing
import os
import signal
import time

import polars as pl
import pytest
import torch

from zoarium._core import parallel
from zoarium._core.errors import MeasureError, ZoariumError
from zoarium._core.parallel import available_cores, run_tasks, torch_threads


def test_every_task_gives_its_result_whatever_the_number_of_workers():
    for workers in (1, 2, 5):
        results = dict(run_tasks(lambda task, worker: task**2, [1, 2, 3, 4], workers=workers))
        assert results == {0: 1, 1: 4, 2: 9, 3: 16}


def test_workers_use_one_torch_thread_and_leave_ours_alone():
    before = torch.get_num_threads()
    results = dict(run_tasks(lambda task, worker: torch.get_num_threads(), [0, 1, 2], workers=2))
    assert set(results.values()) == {1}
    with torch_threads(1):
        pass
    assert torch.get_num_threads() == before
    list(run_tasks(lambda task, worker: None, [0], workers=1))
    assert torch.get_num_threads() == before


def test_a_users_mistake_in_a_worker_arrives_as_itself():
    def fail(task, worker):
        raise MeasureError("no such layer")

    for workers in (1, 2):
        with pytest.raises(MeasureError, match="no such layer"):
            list(run_tasks(fail, [1, 2, 3], workers=workers))


def test_a_bug_in_a_worker_arrives_with_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(run_tasks(lambda task, worker: 1 // task, [0, 0], workers=2))


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(ZoariumError, match=r"signal 9 \(often: out of memory.*run the same command again"):
        list(run_tasks(lambda task, worker: os.kill(os.getpid(), signal.SIGKILL), [0, 1], workers=2))


def test_reports_reach_the_parent():
    seen = []
    tasks = [1, 2, 3]
    list(run_tasks(lambda task, worker: worker.report(task), tasks, workers=2, on_report=seen.append))
    assert sorted(seen) == tasks


def patient(task, worker):
    deadline = time.monotonic() + 30
    while task and not worker.stopping and time.monotonic() < deadline:
        time.sleep(0.01)
    return task


def saving(folder):
    def save_when_asked(task, worker):
        patient(task, worker)
        if worker.stopping:
            (folder / str(task)).write_text("saved")
        return task

    return save_when_asked


def test_closing_early_lets_graceful_tasks_save_and_ends_others(tmp_path):
    start = time.monotonic()
    for graceful in (False, True):
        running = run_tasks(saving(tmp_path), [0, 1], workers=2, graceful=graceful)
        assert next(running) == (0, 0)
        running.close()
        assert (tmp_path / "1").exists() == graceful
    assert time.monotonic() - start < 25


def test_an_interrupt_of_the_only_worker_lets_a_graceful_task_save(tmp_path):
    def interrupt_itself(task, worker):
        os.kill(os.getpid(), signal.SIGINT)
        return saving(tmp_path)(task, worker)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(interrupt_itself, [7], workers=1, graceful=True))
    assert (tmp_path / "7").exists()
    assert signal.getsignal(signal.SIGINT) is before


def double(task, worker):
    worker.report(task)
    return 2 * task


def test_spawned_workers_do_the_same(monkeypatch):
    monkeypatch.setattr(parallel, "_context", lambda: multiprocessing.get_context("spawn"))
    seen = []
    assert dict(run_tasks(double, [1, 2, 3], workers=2, on_report=seen.append)) == {0: 2, 1: 4, 2: 6}
    assert sorted(seen) == [1, 2, 3]


def test_work_that_cannot_be_sent_to_a_spawned_worker_says_what_to_do(monkeypatch):
    monkeypatch.setattr(parallel, "_context", lambda: multiprocessing.get_context("spawn"))
    with pytest.raises(ZoariumError, match=r"cannot be sent to worker processes here .*use workers=1"):
        list(run_tasks(lambda task, worker: task, [1, 2], workers=2))


def test_polars_in_a_forked_worker_raises_instead_of_hanging():
    def query(task, worker):
        return pl.DataFrame({"a": [1]}).with_columns(b=pl.col("a")).height

    with pytest.raises(RuntimeError, match="polars cannot run in a forked worker"):
        list(run_tasks(query, [1, 2], workers=2))


def test_there_is_at_least_one_core():
    assert available_cores() >= 1
