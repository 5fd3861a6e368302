"""Kill a zoo's whole life at random moments until it has been killed often enough, and compare with one left in peace.

    python tests/faults/storm.py FOLDER --kills 50 --seed 0

Grows, measures, adds derived models, repairs, saves a copy and writes a report, in a process group that SIGKILL ends
as a whole. Half of the kills come after a random time; the others strike just before a random system call that orders
what is on disk (fsync, rename, unlink, mkdir), or in the middle of a write. After each kill the zoo must be sound; in
the end every byte of weights and every value of tables, but for seconds spent, must be those of the undisturbed run.
Prints a JSON summary; exits 1 if anything differs.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import filelock  # noqa: F401 (everything is imported before the first fork: each life is a fork that need not)
import polars as pl
import torch

import zoarium as za
import zoarium.report.write
import zoarium.train
import zoarium.zoo.check
import zoarium.zoo.export
import zoarium.zoo.repair
import zoarium.zoo.transaction
from zoarium._core import files
from zoarium.measure import MEASURES

EPOCHS = (2, 4, 6)
METHODS = [MEASURES[name] for name in ("performance", "hessian_trace", "cka")]  # loaded before the first fork
CALLS = ("fsync", "replace", "rename", "unlink", "mkdir")


def live(home: Path) -> None:
    """The life of a zoo, or what is left of it."""
    grid = za.Grid(width=[2, 4, 48], batch_size=[20, 50, 250], seed=range(2), epochs=6)
    zoo = za.grow(grid, home / "zoo", workers=2, checkpoints=EPOCHS, save_every_s=0.0)
    zoo.where(relation=None).measure(*(method.name for method in METHODS), workers=2)
    first = zoo.where(width=4, relation=None).ids
    for k, (a, b) in enumerate(itertools.pairwise(first)):
        if f"mean-{k}" in zoo:
            continue
        one, other = zoo[a].state_dict(), zoo[b].state_dict()
        row = zoo.table.filter(id=a).with_columns(
            id=pl.lit(f"mean-{k}"), parents=pl.Series([[a, b]]), relation=pl.lit("merge")
        )
        with zoo.writing() as transaction:
            transaction.upsert("models", row, key=["id"])
            transaction.add_weights(f"mean-{k}", 6, 0, [f"mean-{k}"], {n: ((one[n] + other[n]) / 2)[None] for n in one})
    bad = zoo.check(repair=True).filter(pl.col("state") != "ok")
    if len(bad):
        raise AssertionError(f"found damaged: {bad.rows()}")
    if not (home / "copy" / "zoo.json").exists():
        zoo.save(home / "copy")
    zoo.report(home / "report.html")


def sound(home: Path) -> None:
    """Nothing half-written may be seen by anybody, whenever the life ended."""
    for name in ("zoo", "copy"):
        if (home / name / "zoo.json").exists():
            zoo = za.open(home / name)
            bad = zoo.check().filter(pl.col("state") != "ok")
            if len(bad):
                raise AssertionError(f"{name}: {bad.rows()}")
            if name == "copy" and len(zoo) < 18:
                raise AssertionError(f"a copy of {len(zoo)} models")
    report = home / "report.html"
    if report.exists() and not report.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise AssertionError("half a report")


def facts(home: Path) -> dict[str, object]:
    """Everything a life leaves behind but the time it took."""
    found: dict[str, object] = {}
    for name in ("zoo", "copy"):
        zoo = za.open(home / name)
        for table in zoo.store.table_names:
            frame = zoo.store.table(table)
            assert frame is not None
            keys = [c for c in ("id", "a", "b", "cell", "epoch", "quantity") if c in frame.columns]
            values = frame.drop("seconds", strict=False).sort(keys)
            if table == "checkpoints":
                values = values.sort("id", "epoch")
            found[f"{name}/{table}"] = values.write_json()
        for file in sorted((home / name / "weights").iterdir()):
            found[f"{name}/{file.name}"] = file.read_bytes().hex()
        found[f"{name}/files"] = sorted(
            str(p.relative_to(home / name)) for p in (home / name).rglob("*") if p.is_file() and "backup" not in p.parts
        )
        header = {k: v for k, v in zoo.info.items() if k not in ("created", "generation")}
        found[f"{name}/header"] = json.dumps(header, sort_keys=True, default=str)
    return found


def strike(after: int, torn: bool) -> None:
    """Arrange for this process group to be killed at the call number `after`, in this process or in a worker."""
    left = after

    def count() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    def deadly(call: Callable) -> Callable:
        def wrapped(*args: object, **kwargs: object) -> object:
            if count():
                os.killpg(0, signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    if torn:
        whole, synced = Path.write_bytes, files.write_synced

        def half(path: Path, content: bytes) -> int:
            if count():
                whole(path, content[: len(content) // 2])
                os.killpg(0, signal.SIGKILL)
            return whole(path, content)

        def half_synced(path: Path, content: bytes) -> None:
            if count():
                whole(path, content[: len(content) // 2])
                os.killpg(0, signal.SIGKILL)
            synced(path, content)

        Path.write_bytes = half  # type: ignore[method-assign]
        for module in (files, sys.modules["zoarium.zoo.store"]):
            setattr(module, "write_synced", half_synced)  # noqa: B010 (each module has its own name for it)
    else:
        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))


def fork(function: Callable[[], None]) -> int:
    """Run a function in a process group of its own; the group's id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 0
    try:
        function()
    except BaseException as error:
        import traceback

        traceback.print_exc()
        print(f"storm: {type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    sys.stderr.flush()
    os._exit(code)


def finished(child: int) -> int:
    """Wait for a process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def storm(root: Path, kills: int, seed: int) -> dict[str, object]:
    """Strike `kills` times, spread over as many lives as that takes."""
    root.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    start = time.monotonic()
    if finished(fork(lambda: live(root / "whole"))):
        raise SystemExit("the undisturbed run failed")
    length = time.monotonic() - start
    done, failures, lives, aimed = 0, [], 0, 0
    while done < kills:
        home = root / f"life{lives}"
        lives += 1
        while True:
            aim = done < kills and chance.random() < 0.5
            after, torn = chance.randrange(60), chance.random() < 0.3
            delay = chance.uniform(0, length)

            def run(home: Path = home, aim: bool = aim, after: int = after, torn: bool = torn) -> None:
                if aim:
                    strike(after // 3 if torn else after, torn)
                live(home)

            child = fork(run)
            if not aim and done < kills:
                deadline = time.monotonic() + delay
                while time.monotonic() < deadline and not os.waitid(
                    os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
                ):
                    time.sleep(0.002)
                if not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    os.killpg(child, signal.SIGKILL)
            code = finished(child)
            if code == -signal.SIGKILL:
                done, aimed = done + 1, aimed + aim
                wait_for_group(child)
            elif code:
                failures.append(f"life {lives - 1} failed after {done} kills")
                break
            if finished(fork(lambda home=home: sound(home))):
                failures.append(f"life {lives - 1} is not sound after {done} kills")
                break
            if code == 0:
                break
        if not failures and finished(fork(lambda home=home: compare(root / "whole", home))):
            failures.append(f"life {lives - 1} differs")
        if failures:
            break
    return {
        "kills": done, "aimed": aimed, "lives": lives, "failures": failures,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def wait_for_group(group: int) -> None:
    """Wait until the workers of a killed process are gone too; zombies nobody reaps count as gone after a second."""
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.005)


def compare(whole: Path, home: Path) -> None:
    """Both lives left the same behind."""
    expected, found = facts(whole), facts(home)
    differing = [key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)]
    if differing:
        raise AssertionError(f"not the same: {differing}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    torch.set_num_threads(1)
    for module in ("zoarium.growth.grow", "zoarium.measure.driver"):
        vars(importlib.import_module(module))["COMMIT_EVERY_S"] = 0.0  # commit often: more moments to strike
    summary = storm(words.folder, words.kills, words.seed)
    print(json.dumps(summary))
    sys.exit(1 if summary["failures"] else 0)
