"""Disks that are full or read-only: one sentence, and the zoo is as it was."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import zoarium as za
from zoarium._core.errors import StoreError, ZoariumError
from zoarium.zoo.check import check_zoo

KIB = 1024


def mounted(folder: Path, options: str) -> bool:
    """Mount a file system in memory on `folder`, where this machine lets us."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A folder that takes about `size` bytes; where nothing can be mounted, one whose files may not grow beyond it."""
    folder.mkdir(parents=True)
    if mounted(folder, f"size={size}"):
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 8, before[1]))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def freed(folder: Path) -> None:
    """Make room."""
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], capture_output=True, check=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def work(grid, path: Path, workers: int) -> za.Zoo:
    zoo = za.grow(grid, path, workers=workers, checkpoints=[2, 4], save_every_s=0.0)
    return zoo.measure("performance", "cka", "seed_averaging", workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_growing_on_a_full_disk_is_one_sentence_and_resumes_to_the_same_bits(
    zoo, grid, content, tmp_path, workers, monkeypatch
):
    for name in ("zoarium.growth.grow", "zoarium.measure.driver"):
        monkeypatch.setattr(importlib.import_module(name), "COMMIT_EVERY_S", 0.0)
    whole = content(zoo)
    failures, models = 0, set()
    for size in range(8 * KIB, 300 * KIB, (12 if workers == 1 else 36) * KIB):
        with small_disk(tmp_path / f"disk{size}", size) as disk:
            path = disk / "zoo"
            try:
                work(grid(), path, workers)
            except ZoariumError as error:
                said = str(error)
                failures += 1
                assert said.startswith("cannot write ")
                assert "the disk is full; free some space and run" in said or "may not grow that large" in said
                assert "\n" not in said
                if (path / "zoo.json").exists():
                    left = za.open(path)
                    models.add((len(left), int((left.table["status"] == "trained").sum()), len(left.measures)))
                    assert set(check_zoo(path)["state"]) == {"ok"}
            freed(disk)
            assert content(za.open(work(grid(), path, workers).path)) == whole
            assert set(check_zoo(path)["state"]) == {"ok"}
            assert not [p for p in path.rglob("*") if p.name.endswith((".pending", ".tmp"))]
    assert failures >= 3
    assert len(models) >= 2  # it was cut off at different steps


def full_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the disk take `calls` more writes, renames and new folders, in any module."""
    left = calls
    original = {name: getattr(os, name) for name in ("fsync", "replace", "mkdir", "open")}

    def limited(name: str):
        def call(*args, **kwargs):
            nonlocal left
            writing = name != "open" or (len(args) > 1 and args[1] & (os.O_WRONLY | os.O_RDWR))
            if writing:
                left -= 1
                if left < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return original[name](*args, **kwargs)

        return call

    for name in original:
        monkeypatch.setattr(os, name, limited(name))


def test_a_repair_a_copy_and_a_report_on_a_full_disk_leave_everything_as_it_was(zoo, content, tmp_path, monkeypatch):
    (zoo.path / "pairs" / "cka.parquet").write_bytes(b"x")
    (zoo.path / "models.parquet").unlink()
    damaged = tmp_path / "damaged"
    shutil.copytree(zoo.path, damaged)
    refused = {"repair": 0, "copy": 0, "report": 0}
    check_zoo(zoo.path, repair=True)
    sound = za.open(zoo.path)
    expected = content(sound)
    for calls in (*range(12), *range(12, 40, 4)):
        for name, target in (
            ("repair", tmp_path / "r"),
            ("copy", tmp_path / "c"),
            ("report", tmp_path / "report.html"),
        ):
            if name == "repair":
                shutil.copytree(damaged, target)
            with monkeypatch.context() as patched:
                full_after(patched, calls)
                try:
                    if name == "repair":
                        check_zoo(target, repair=True)
                    elif name == "copy":
                        sound.save(target)
                    else:
                        sound.report(target)
                    said = ""
                except StoreError as error:
                    said = str(error)
                if said:
                    refused[name] += 1
                    assert said.startswith("cannot write ")
                    assert "the disk is full" in said
                    assert name == "repair" or not (target / "zoo.json").exists()
            if name == "report" and target.exists():
                assert target.read_text(encoding="utf-8").rstrip().endswith("</html>")
            if name == "repair":
                check_zoo(target, repair=True)
                assert content(za.open(target)) == expected
            if name == "copy":
                copy = za.open(target) if (target / "zoo.json").exists() else sound.save(target)
                assert content(za.open(copy.path)) == expected
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
    assert all(count >= 1 for count in refused.values())
    assert refused["repair"] > 3
    assert refused["copy"] > 3


@contextlib.contextmanager
def read_only(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The zoo on a read-only file system; where none can be mounted, every attempt to write meets the same refusal."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if mounted(disk, "size=16m"):
        try:
            shutil.copytree(path, disk / "zoo")
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            yield disk / "zoo"
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        return
    shutil.copytree(path, disk / "zoo")
    names = ("open", "mkdir", "replace", "rename", "unlink")
    original = {name: getattr(os, name) for name in names}

    def refusing(name: str):
        def call(target, *args, **kwargs):
            inside = str(target).startswith(str(disk))
            if inside and (name != "open" or (args and args[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))):
                raise OSError(errno.EROFS, "Read-only file system")
            return original[name](target, *args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for name in names:
            patched.setattr(os, name, refusing(name))
        yield disk / "zoo"


def test_a_read_only_zoo_can_be_read_reported_and_checked_and_says_so_when_it_is_to_change(
    zoo, grid, content, tmp_path, monkeypatch
):
    expected = content(zoo)
    (damaged,) = (zoo.path / "backup").glob("models-*")
    damaged.write_bytes(b"x")
    with read_only(zoo.path, tmp_path, monkeypatch) as path:
        found = za.open(path)
        assert len(found) == 4
        assert found.values("test_loss")["value"].is_finite().all()
        assert found[0].state_dict()
        assert found.report(tmp_path / "report.html").stat().st_size > 10_000
        assert check_zoo(path).filter(pl.col("state") != "ok")["file"].to_list() == [f"backup/{damaged.name}"]
        assert found.measure("performance", workers=1) is found  # all of it is there
        for change in (
            lambda: za.grow(grid(width=[2, 3, 4]), path, workers=1),
            lambda: found.measure("weight_norm", workers=1),
            lambda: check_zoo(path, repair=True),
            lambda: found.writing().__enter__(),
        ):
            with pytest.raises(StoreError, match=r"^cannot write .*: the file system is read-only; choose another"):
                change()
        copy = found.where(width=2)
        assert len(copy.ids) == 2
    assert expected["weights"] == content_weights(zoo)


def content_weights(zoo: za.Zoo) -> dict[tuple[str, int], dict[str, list]]:
    rows = zoo.checkpoints.iter_rows(named=True)
    return {
        (r["id"], r["epoch"]): {k: v.tolist() for k, v in zoo[r["id"]].state_dict(r["epoch"]).items()} for r in rows
    }


NOBODY = """
import os, sys
import filelock, polars, zoarium.zoo.transaction, zoarium.report.write, zoarium.zoo.repair
import zoarium as za
from zoarium.measure import MEASURES
MEASURES["weight_norm"], za.data.load("digits")  # before rights are given up
from zoarium._core.errors import StoreError
from zoarium.zoo.check import check_zoo
os.chdir(sys.argv[1])
if os.getuid() == 0:  # permissions do not hold for root
    os.setgid(65534)
    os.setuid(65534)
zoo = za.open(".")
print(len(zoo), len(zoo.history), set(check_zoo(".")["state"]))
for change in (
    lambda: za.grow("mlp", ".", width=[2, 9], epochs=1, workers=1),
    lambda: zoo.measure("weight_norm", workers=1),
    lambda: check_zoo(".", repair=True),
):
    try:
        change()
    except StoreError as error:
        print(error)
"""


def test_a_folder_one_may_not_write_to_is_read_and_says_so_when_it_is_to_change(zoo):
    folders = [zoo.path, *zoo.path.rglob("*")]
    for path in folders:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        command = [sys.executable, "-c", NOBODY, str(zoo.path)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        for path in folders:
            path.chmod(0o755)
    said = run.stdout.splitlines()
    assert said[0] == "4 20 {'ok'}", run.stderr
    assert len(said) == 4
    assert all(
        line.startswith("cannot write ") and "permission denied; choose a folder you can write to" in line
        for line in said[1:]
    )
