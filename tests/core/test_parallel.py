import os
import signal
import time

import pytest
import torch

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


def test_closing_early_lets_workers_stop():
    def patient(task, worker):
        deadline = time.monotonic() + 30
        while task and not worker.stopping and time.monotonic() < deadline:
            time.sleep(0.01)
        return task

    running = run_tasks(patient, [0, 1], workers=2)
    start = time.monotonic()
    assert next(running) == (0, 0)
    running.close()
    assert time.monotonic() - start < 20


def test_there_is_at_least_one_core():
    assert available_cores() >= 1
