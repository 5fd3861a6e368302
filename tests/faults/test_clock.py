"""Clocks that jump, and names of folders that are unusual."""

from __future__ import annotations

import datetime
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

import zoarium as za
from zoarium._core.errors import StoreError
from zoarium.zoo.check import check_zoo


def test_a_clock_that_runs_backwards_changes_nothing_and_no_time_is_negative(zoo, grid, content, tmp_path, monkeypatch):
    expected = content(zoo)
    jumps = itertools.cycle([-86400.0 * 365, 3600.0, -5.0, -1e6])
    now = time.time()

    def wrong() -> float:
        nonlocal now
        now += next(jumps)
        return max(now, 1.0)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(wrong(), tz)

    monkeypatch.setattr(time, "time", wrong)
    monkeypatch.setattr(time, "time_ns", lambda: int(wrong() * 1e9))
    for module in ("store", "lock"):
        monkeypatch.setattr(f"zoarium.zoo.{module}.datetime", Clock)
    path = tmp_path / "z"

    def stop(done, total, note):
        if total / 2 <= done < total:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        za.grow(grid(), path, workers=1, checkpoints=[2, 4], save_every_s=0.0, on_progress=stop)
    assert any((path / "growing").iterdir())
    # files that seem to be of the future, or of 1970: nothing looks at their times
    for n, file in enumerate(p for p in path.rglob("*") if p.is_file()):
        os.utime(file, (4e9, 4e9) if n % 2 else (0, 0))
    zoo = za.grow(grid(), path, workers=1, checkpoints=[2, 4])
    zoo.measure("performance", "cka", "seed_averaging", workers=1)
    assert content(za.open(path)) == expected
    assert (zoo.history["seconds"] >= 0).all()
    for name in ("test_loss", "cka"):
        assert (zoo.values(name)["seconds"] >= 0).all()
    assert set(check_zoo(path)["state"]) == {"ok"}
    assert set(zoo.ids) == {id for id, _ in expected["weights"]}


def test_a_folder_whose_name_is_no_utf_8_is_refused_in_words_that_can_be_printed(zoo, grid, tmp_path):
    path = tmp_path / os.fsdecode(b"zo\xff")
    for make in (lambda: za.grow(grid(), path, workers=1), lambda: za.open(path), lambda: zoo.save(path)):
        with pytest.raises(StoreError, match=r"zo\\udcff: this name is not valid UTF-8; rename that folder\.$"):
            make()
    assert not path.exists()
    command = [
        sys.executable,
        "-m",
        "zoarium",
        "report",
        str(zoo.path),
        "-o",
        str(tmp_path / os.fsdecode(b"r\xff.html")),
    ]
    run = subprocess.run(command, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert b"r\\udcff.html" in run.stdout


def test_a_folder_with_any_other_name_can_be_used(grid, tmp_path):
    zoo = za.grow(grid(), tmp_path / "zoo 'é' \n\t [b]\u202e 动物园 %s", workers=1)
    assert set(zoo.check()["state"]) == {"ok"}
    assert zoo.report(tmp_path / "[r] é.html").exists()


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["y" * 200] * 25)])
def test_a_path_that_is_too_long_is_one_sentence(grid, tmp_path, name):
    for make in (lambda: za.grow(grid(), tmp_path / name, workers=1), lambda: za.open(tmp_path / name)):
        with pytest.raises(StoreError, match=r"(name is too long; choose a shorter one|File name too long)") as said:
            make()
        assert "\n" not in str(said.value)


def test_a_zoo_in_a_path_of_nearly_the_longest_length_works(grid, tmp_path):
    path = tmp_path
    while len(str(path)) < 3600:
        path = path / ("z" * 200)
    zoo = za.grow(grid(), path, workers=1)
    assert set(zoo.check()["state"]) == {"ok"}
