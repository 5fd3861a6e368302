from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from zoarium._core.errors import LockedError, StoreError
from zoarium.zoo import Zoo, transaction
from zoarium.zoo import open as open_zoo


class Crash(BaseException):
    """Power goes off here."""


def change(zoo: Zoo, stacked) -> None:
    """One transaction that touches a table of every kind, adds weights and changes the header."""
    with zoo.writing() as tx:
        tx.set_models(zoo.store.models.with_columns(extra=pl.lit(7)))
        tx.upsert(
            "history", pl.DataFrame({"id": ["mlp-w2-s0"], "epoch": [3], "train_loss": [0.1]}), key=["id", "epoch"]
        )
        tx.add_weights("w2", 3, 30, ["mlp-w2-s0"], stacked(2, n=1, seed=3))
        tx.replace("pairs/cka", None)
        tx.update_header(note="changed")


# ---------------------------------------------------------------------- one commit


def test_what_was_written_is_read_back_by_another_object(zoo, content):
    assert content(open_zoo(zoo.path)) == content(zoo)


def test_a_failed_block_leaves_every_byte_as_it_was(zoo, stacked):
    def listing() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in zoo.path.rglob("*") if p.is_file() and p.name != ".lock"}

    before = listing()

    def fail() -> None:
        with zoo.writing() as tx:
            tx.set_models(zoo.store.models.head(1))
            tx.add_weights("w2", 9, 90, ["mlp-w2-s0"], stacked(2, n=1))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert listing() == before
    assert len(zoo) == 6


def test_nothing_is_visible_before_the_block_ends(zoo, stacked):
    with zoo.writing() as tx:
        tx.set_models(zoo.store.models.head(2))
        tx.add_weights("w2", 9, 90, ["mlp-w2-s0"], stacked(2, n=1))
        assert len(zoo) == 6
        assert 9 not in zoo["mlp-w2-s0"].epochs
        assert len(open_zoo(zoo.path)) == 6
    assert len(zoo) == 2


def test_a_transaction_can_commit_in_the_middle_and_go_on(zoo):
    def fail() -> None:
        with zoo.writing() as tx:
            tx.update_header(step="one")
            tx.commit()
            tx.update_header(step="two")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert open_zoo(zoo.path).info["step"] == "one"


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_crash_at_any_step_leaves_the_old_zoo_or_the_new_one(tmp_path, zoo, stacked, content, monkeypatch, call):
    before = content(zoo)
    after_path = tmp_path / "after"
    shutil.copytree(zoo.path, after_path)
    change(open_zoo(after_path), stacked)
    after = content(open_zoo(after_path))
    seen = set()
    original = getattr(os, call)
    for step in range(30):
        path = tmp_path / f"{call}{step}"
        shutil.copytree(zoo.path, path)
        count = 0

        def crash(*args, step=step, **kwargs):
            nonlocal count
            count += 1
            if count > step:
                raise Crash
            return original(*args, **kwargs)

        victim = open_zoo(path)
        with monkeypatch.context() as patched:
            patched.setattr(os, call, crash)
            # a dead process does not tidy up behind itself either
            patched.setattr("zoarium.zoo.store.unlink", lambda path: None)
            patched.setattr(transaction.Transaction, "rollback", lambda self: None)
            try:
                change(victim, stacked)
                finished = True
            except Crash:
                finished = False
        found = content(open_zoo(path))
        assert found in (before, after)
        seen.add(found == after)
        next_writer = open_zoo(path)
        with next_writer.growing():
            pass
        assert content(open_zoo(path)) == found
        assert not [p for p in path.rglob("*") if p.name.endswith((".pending", ".tmp"))]
        assert {str(p.relative_to(path)) for p in path.rglob("*.safetensors")} == {
            name for name in next_writer.store.manifest.files if name.endswith(".safetensors")
        }
        if finished:
            break
    assert finished
    assert seen == {False, True}


WRITERS = """
import os, sys
import polars as pl, torch
from zoarium.zoo import Zoo
import zoarium.zoo.transaction, filelock

def write(path):
    zoo = Zoo.open(path)
    count = zoo.info["count"]
    print(os.getpid(), flush=True)
    while True:
        count += 1
        with zoo.writing() as tx:
            tx.set_models(zoo.store.models.with_columns(count=pl.lit(count)))
            tx.upsert("history", pl.DataFrame({"id": ["m"], "epoch": [count]}), key=["id", "epoch"])
            tx.add_weights("w", count, count, ["m"], {"a": torch.full((1, 50), float(count))})
            tx.update_header(count=count)

print("ready", flush=True)
for line in sys.stdin:  # importing takes seconds, so each writer is a fork of a process that has only imported
    child = os.fork()
    if not child:
        write(sys.argv[1])
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def test_a_writer_killed_at_random_moments_never_leaves_half_a_zoo(tmp_path):
    zoo = Zoo.create(tmp_path / "zoo")
    with zoo.writing() as tx:
        tx.set_models(pl.DataFrame({"id": ["m"], "status": ["planned"], "count": [0]}))
        tx.update_header(count=0)
    counts = [0]
    writers = start(WRITERS, zoo.path)
    assert writers.stdin is not None
    assert writers.stdout is not None
    for kill in range(12):
        writers.stdin.write("another\n")
        writers.stdin.flush()
        pid = int(writers.stdout.readline())
        time.sleep(0.011 * kill)
        os.kill(pid, signal.SIGKILL)
        assert writers.stdout.readline() == "gone\n"
        found = open_zoo(zoo.path)
        count = found.info["count"]
        assert found.store.models["count"].to_list() == [count]
        assert found.history["epoch"].to_list() == list(range(1, count + 1))
        assert found.checkpoints["epoch"].to_list() == list(range(1, count + 1))
        if count:
            assert found[0].state_dict()["a"].tolist() == [float(count)] * 50
        assert set(found.check()["state"]) == {"ok"}
        counts.append(count)
    writers.stdin.close()
    writers.wait(timeout=30)
    assert counts == sorted(counts)
    assert counts[-1] > 0


def start(code: str, *args: object) -> subprocess.Popen:
    """Run code in another process and wait for its first line."""
    command = [sys.executable, "-c", code, *map(str, args)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    return process


def test_a_table_left_pending_by_a_crash_is_read_without_writing_anything(zoo, content):
    expected = content(zoo)
    for name in ("models.parquet", "history.parquet"):
        content_now = (zoo.path / name).read_bytes()
        (zoo.path / f"{name}.pending").write_bytes(content_now)
        (zoo.path / name).write_bytes(b"the table of the commit before")
    files = sorted(p.name for p in zoo.path.iterdir())
    assert content(open_zoo(zoo.path)) == expected
    assert sorted(p.name for p in zoo.path.iterdir()) == files


def test_a_pending_table_that_was_never_committed_is_ignored(zoo, content):
    expected = content(zoo)
    (zoo.path / "models.parquet.pending").write_bytes(b"never committed")
    assert content(open_zoo(zoo.path)) == expected


def test_a_reader_follows_a_writer_that_commits_between_its_reads(zoo):
    reader = open_zoo(zoo.path)
    with zoo.writing() as tx:
        tx.upsert("history", pl.DataFrame({"id": ["mlp-w2-s0"], "epoch": [3]}), key=["id", "epoch"])
    assert 3 in reader.history["epoch"].to_list()


def test_a_second_writer_builds_on_what_the_first_one_committed(zoo):
    other = open_zoo(zoo.path)
    with zoo.writing() as tx:
        tx.upsert("models", pl.DataFrame({"id": ["new"], "status": ["planned"]}), key=["id"])
    with other.writing() as tx:
        tx.upsert("models", pl.DataFrame({"id": ["newer"], "status": ["planned"]}), key=["id"])
    assert zoo.refresh().ids[-2:] == ["new", "newer"]


# ---------------------------------------------------------------------- lock

HOLDER = """
import sys, time
from zoarium.zoo import Zoo
with Zoo.open(sys.argv[1]).writing():
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_zoo_that_another_process_writes_says_which(zoo):
    process = start(HOLDER, zoo.path)
    try:
        with pytest.raises(LockedError, match=rf"written by process {process.pid} on .*wait"), zoo.writing():
            pass
        assert len(open_zoo(zoo.path)) == 6
    finally:
        process.kill()
        process.wait()
    with zoo.writing():
        pass


def test_two_objects_in_one_process_exclude_each_other(zoo):
    other = open_zoo(zoo.path)
    with zoo.writing(), pytest.raises(LockedError, match=str(os.getpid())), other.writing():
        pass


def test_writing_inside_growing_shares_the_lock(zoo):
    with zoo.growing():
        with zoo.writing() as tx:
            tx.update_header(note=1)
        with pytest.raises(LockedError), open_zoo(zoo.path).writing():
            pass
    with open_zoo(zoo.path).writing():
        pass


def test_weights_of_a_killed_run_are_removed_unless_an_unfinished_program_may_need_them(zoo):
    stray = zoo.path / "weights" / "stray@1.safetensors"
    stray.write_bytes(b"x")
    state = zoo.path / "growing" / "program.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"x")
    with zoo.growing():
        pass
    assert stray.exists()
    state.unlink()
    with zoo.growing():
        pass
    assert not stray.exists()


# ---------------------------------------------------------------------- disks that refuse


def test_a_full_disk_is_one_sentence_and_the_zoo_is_as_it_was(zoo, stacked, content, monkeypatch):
    before = content(zoo)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    for where in ("zoarium.zoo.store.write_synced", "zoarium.zoo.store.sync", "zoarium.zoo.weights.os.replace"):
        with monkeypatch.context() as patched:
            patched.setattr(where, full)
            with pytest.raises(StoreError, match=r"^cannot write .*the disk is full; free some space.*\.$"):
                change(zoo, stacked)
        assert content(zoo) == before
        assert content(open_zoo(zoo.path)) == before
        assert not [p for p in zoo.path.rglob("*") if p.name.endswith((".pending", ".tmp"))]
    change(zoo, stacked)
    assert zoo.info["note"] == "changed"


READER = """
import os, sys
import filelock, polars, zoarium.zoo.transaction
from zoarium.zoo import Zoo
from zoarium._core.errors import StoreError
os.chdir(sys.argv[1])
if os.getuid() == 0:  # permissions do not hold for root
    os.setgid(65534)
    os.setuid(65534)
zoo = Zoo.open(".")
print("ready", flush=True)
print(len(zoo), len(zoo.history), zoo.where(width=2).ids[0])
try:
    with zoo.writing():
        pass
except StoreError as error:
    print(error)
"""


def test_a_read_only_folder_is_read_and_says_so_when_written(zoo):
    (zoo.path / ".lock").unlink(missing_ok=True)
    for path in [zoo.path, *zoo.path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        said = start(READER, zoo.path).communicate(timeout=30)[0].splitlines()
    finally:
        for path in [zoo.path, *zoo.path.rglob("*")]:
            path.chmod(0o755)
    assert said[0] == "6 12 mlp-w2-s0"
    assert "cannot write" in said[1]
    assert "permission denied; choose a folder you can write to" in said[1]
