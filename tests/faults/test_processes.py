"""Several processes and one zoo; processes that are interrupted, killed, or whose folder goes away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoarium as za
from zoarium._core.errors import LockedError, StoreError, ZoariumError
from zoarium.zoo import Zoo
from zoarium.zoo.check import check_zoo

LONG = "net: mlp\nwidth: [2, 3]\nbatch_size: [8]\nseed: {range: [0, 2]}\nepochs: 100000\n"


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "zoarium", *map(str, words)]


@contextlib.contextmanager
def growing(path: Path, *, workers: int = 2) -> Iterator[subprocess.Popen]:
    """A process that grows a zoo for a long time, and has begun to."""
    spec = path.parent / "long.yaml"
    spec.write_text(LONG)
    words = command("grow", spec, "-o", path, "-w", workers)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until(
            lambda: (path / "models.parquet").exists() and len(children(process.pid)) >= (workers if workers > 1 else 0)
        )
        time.sleep(0.5)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(holds) -> None:
    """Wait for something that happens soon, or fail."""
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    run = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in run.stdout.splitlines() if not line.split()[1].startswith("Z")]


def alive(pid: int) -> bool:
    run = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(run.stdout.strip()) and not run.stdout.strip().startswith("Z")


def test_a_second_grower_and_a_repair_are_told_who_writes_where_and_since_when_and_readers_read_on(tmp_path):
    path = tmp_path / "zoo"
    with growing(path) as process:
        who = rf"written by process {process.pid} on {re.escape(os.uname().nodename)} \(since \d{{4}}-\d\d-\d\dT"
        for other in (
            lambda: za.grow(za.Grid.from_yaml(tmp_path / "long.yaml"), path),
            lambda: check_zoo(path, repair=True),
        ):
            with pytest.raises(LockedError, match=who):
                other()
        assert len(za.open(path)) == 4
        assert set(check_zoo(path)["state"]) == {"ok"}


def test_a_killed_growers_lock_and_workers_end_with_it(tmp_path):
    path = tmp_path / "zoo"
    with growing(path) as process:
        workers = children(process.pid)
        assert len(workers) == 2
        os.kill(process.pid, signal.SIGKILL)  # the parent alone, as a machine short of memory does
        process.wait()
        until(lambda: not any(map(alive, workers)))
        assert (path / ".lock.json").exists()  # it says who it was, but holds nobody up
        with za.open(path).writing() as tx:
            tx.update_header(note="free")
    assert za.open(path).info["note"] == "free"


def test_a_worker_killed_for_its_memory_is_named_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "zoo"
    with growing(path) as process:
        os.kill(children(process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2
        said = " ".join(said.split())
        assert "a worker process was ended by signal 9 (often: out of memory; give a smaller --memory" in said
        assert "Traceback" not in said
    with za.open(path).writing():
        pass
    assert set(check_zoo(path)["state"]) == {"ok"}


@pytest.mark.parametrize(
    ("number", "code", "group", "workers"),
    [(signal.SIGINT, 130, False, 2), (signal.SIGTERM, 143, True, 2), (signal.SIGTERM, 143, False, 1)],
)
def test_an_interrupt_saves_says_one_line_and_exits_as_a_shell_expects(tmp_path, number, code, group, workers):
    path = tmp_path / "zoo"
    with growing(path, workers=workers) as process:
        (os.killpg if group else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code
        assert said.splitlines() == ["interrupted: what was done is saved; run the same command again to resume."]
    assert any((path / "growing").iterdir())
    assert set(check_zoo(path)["state"]) == {"ok"}


def test_an_interrupt_of_a_command_that_saves_nothing_is_one_line_too(zoo, monkeypatch, capsys):
    from zoarium.cli import app

    sent = [signal.SIGTERM, signal.SIGINT]

    def slow(*args, **kwargs):
        os.kill(os.getpid(), sent.pop())
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("zoarium.zoo.check.check_zoo", slow)
    monkeypatch.setattr(sys, "argv", ["zoarium", "check", str(zoo.path)])
    for code in (130, 143):
        with pytest.raises(SystemExit) as stop:
            app.run()
        assert stop.value.code == code
        assert capsys.readouterr().err == "interrupted: nothing is half-written; run the same command again.\n"
    assert signal.getsignal(signal.SIGTERM) is before


WRITER = """
import sys
import polars as pl, torch
from zoarium.zoo import Zoo
zoo = Zoo.open(sys.argv[1])
print("ready", flush=True)
for count in range(1, 100_000):
    with zoo.writing() as tx:
        tx.set_models(zoo.store.models.with_columns(count=pl.lit(count)))
        tx.replace("history", pl.DataFrame({"id": ["m"] * count, "epoch": range(count)}).tail(5))
        tx.replace("measures/count", pl.DataFrame({"id": ["m"], "epoch": [0], "quantity": ["count"], "value": [count]}))
        tx.add_weights("w", 0, count, ["m"], {"a": torch.full((1, 500), float(count))})
        tx.update_header(count=count)
"""


def test_readers_beside_a_writer_never_see_half_a_commit(tmp_path):
    import polars as pl
    import torch

    zoo = Zoo.create(tmp_path / "zoo")
    with zoo.writing() as tx:
        tx.set_models(pl.DataFrame({"id": ["m"], "status": ["trained"], "count": [0]}))
        tx.replace("measures/count", pl.DataFrame({"id": ["m"], "epoch": [0], "quantity": ["count"], "value": [0]}))
        tx.add_weights("w", 0, 0, ["m"], {"a": torch.zeros(1, 500)})
        tx.update_header(count=0)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(zoo.path)], stdout=subprocess.PIPE, text=True)
    seen = []
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for n in range(400):
            if n % 20 == 0:
                until(lambda: za.open(zoo.path).info["count"] > (seen[-1] if seen else 0))
            reader = za.open(zoo.path)
            # each table is of one commit; what is asked for later may be of a later one, never of an earlier one
            first = reader.store.models["count"][0]
            second = reader.store.frame("checkpoints")["step"][0]
            third = reader.values("count")["value"][0]
            assert seen[-1:] <= [first]
            assert first <= second <= third
            with contextlib.suppress(StoreError):  # weights of a commit go with the commit that no longer has them
                values = set(reader[0].state_dict()["a"].tolist())
                assert len(values) == 1
                assert values.pop() >= first
            seen.append(reader.info["count"])
    finally:
        writer.kill()
        writer.communicate()
    assert len(set(seen)) >= 20
    assert set(check_zoo(zoo.path)["state"]) == {"ok"}


def test_two_who_measure_exclude_each_other_before_anything_is_computed(zoo, monkeypatch):
    other = za.open(zoo.path)

    def never(*args, **kwargs):
        raise AssertionError("it was computed")

    monkeypatch.setattr("zoarium.measure.driver.run_job", never)
    with other.growing():
        with pytest.raises(LockedError, match=rf"written by process {os.getpid()} on .*since"):
            zoo.measure("weight_norm", workers=1)
        assert zoo.measure("performance", workers=1) is zoo  # all there, so nobody is in the way


def test_a_lock_held_on_another_machine_names_that_machine(zoo):
    with zoo.writing():
        holder = {"pid": 4711, "host": "node17", "since": "2031-01-01T00:00:00+00:00"}
        (zoo.path / ".lock.json").write_text(json.dumps(holder))
        with (
            pytest.raises(LockedError, match=r"process 4711 on node17 \(since 2031-01-01T00:00:00\+00:00\); wait"),
            za.open(zoo.path).writing(),
        ):
            pass


@pytest.mark.parametrize("holder", ["", "{", "[]", '{"pid": "x", "host": 1, "since": 2}', '{"pid": 1}'])
def test_a_lock_whose_holder_cannot_be_read_still_holds(zoo, holder):
    with zoo.writing():
        (zoo.path / ".lock.json").write_text(holder)
        with pytest.raises(LockedError, match="written by another process; wait"), za.open(zoo.path).writing():
            pass


def test_a_lock_file_that_cannot_be_written_is_one_sentence(zoo):
    (zoo.path / ".lock").unlink(missing_ok=True)
    (zoo.path / ".lock").mkdir()
    with pytest.raises(StoreError, match=r"^cannot write .*\.lock: .*\.$"), zoo.writing():
        pass
    assert len(za.open(zoo.path)) == 4


def test_a_folder_that_vanishes_while_it_grows_is_one_sentence_and_does_not_come_back_half(tmp_path, grid):
    path = tmp_path / "zoo"

    def vanish(done, total, note):
        if path.exists():
            shutil.rmtree(path)

    with pytest.raises(StoreError, match=r"^cannot write .*(is gone|deleted, moved or replaced).*\.$"):
        za.grow(grid(), path, workers=1, save_every_s=0.0, on_progress=vanish)
    assert not path.exists()


def test_a_folder_that_was_replaced_is_not_written_to_by_who_held_the_old_one(zoo, tmp_path):
    old = tmp_path / "moved"

    def write() -> None:
        with zoo.writing() as tx:
            tx.update_header(note="lost")
            shutil.copytree(zoo.path, tmp_path / "new")
            zoo.path.rename(old)
            (tmp_path / "new").rename(zoo.path)

    with pytest.raises(StoreError, match="the folder was deleted, moved or replaced while it was being written"):
        write()
    assert "note" not in za.open(zoo.path).info
    assert "note" not in za.open(old).info


def test_a_zoo_whose_folder_is_gone_is_not_made_anew_by_writing_to_it(zoo):
    shutil.rmtree(zoo.path)
    with pytest.raises(ZoariumError, match=r"there is no such folder|is gone"):
        zoo.measure("weight_norm", workers=1)
    with pytest.raises(StoreError, match="is gone"), zoo.writing():
        pass
    assert not zoo.path.exists()
