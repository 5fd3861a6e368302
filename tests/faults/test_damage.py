"""Whatever happens to the bytes of a zoo is noticed and named, the rest can be read, and a repair leaves it sound."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import zoarium as za
from zoarium._core.errors import DamagedError, StoreError, ZoariumError
from zoarium.zoo import Zoo
from zoarium.zoo.backup import KEPT
from zoarium.zoo.check import check_zoo

FLIPS = 1000


def files_of(root: Path) -> list[Path]:
    """Every file that belongs to a zoo, its copies included."""
    return sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".lock"))


def parts(root: Path) -> dict[object, object]:
    """All a zoo says, part by part; what cannot be read is the sentence that says so."""
    try:
        zoo = za.open(root)
    except StoreError as error:
        return {"zoo": error}
    said: dict[object, object] = {}

    def part(key: object, read: Callable[[], object]) -> None:
        try:
            said[key] = read()
        except ZoariumError as error:
            said[key] = error

    for name in sorted(zoo.store.table_names):
        part(name, lambda name=name: zoo.store.frame(name).rows() if name in ("models", "history", "checkpoints")
             else zoo.store.table(name).rows())  # type: ignore[union-attr]  # fmt: skip
    part("header", lambda: {k: v for k, v in zoo.info.items() if k != "generation"})
    part("data", lambda: zoo.base_data("blobs").train.x.tolist())
    checkpoints = said["checkpoints"] if isinstance(said["checkpoints"], list) else []
    for id, epoch, *_ in checkpoints:
        part((id, epoch), lambda id=id, epoch=epoch: {k: v.tolist() for k, v in zoo[id].state_dict(epoch).items()})
    return said


def judged(root: Path, path: Path, whole: dict[object, object]) -> int:
    """Whether a reader noticed damage to `path`, after making sure that it was named and nothing wrong was said."""
    noticed = 0
    for key, said in parts(root).items():
        if isinstance(said, StoreError):
            assert path.name in str(said), f"{said} does not name {path.name}"
            assert "\n" not in str(said)
            noticed = 1
        else:
            assert said == whole[key], f"{key} is wrong after damage to {path.name}"
    return noticed


def mended(root: Path, path: Path, whole: dict[object, object]) -> pl.DataFrame:
    """Repair, and make sure that what is left is sound, and that what was lost is what was said."""
    name = str(path.relative_to(root))
    report = check_zoo(root, repair=True)
    assert set(check_zoo(root)["state"]) == {"ok"}
    bad = report.filter(pl.col("state") != "ok")
    assert (bad["outcome"] != "").all()
    assert set(bad["file"]) <= {name}
    said = parts(root)
    assert not [value for value in said.values() if isinstance(value, Exception) and name.split("/")[0] != "data"]
    lost = bad.filter(pl.col("outcome").str.starts_with("lost"))
    if not len(lost):
        assert said == whole
        return bad
    assert name.split("/")[0] in ("weights", "measures", "pairs", "cells", "data"), f"{name} could have been put back"
    gone = set(whole) - set(said)
    assert {key for key in gone if isinstance(key, tuple)} == set(
        lost.filter(pl.col("id").is_not_null()).select("id", "epoch").iter_rows()
    )
    for key, value in said.items():
        if key not in ("models", "checkpoints", "data", "header"):
            assert value == whole[key]
    return bad


def test_a_thousand_flipped_bits_are_noticed_and_named_or_change_nothing(zoo, tmp_path):
    root, whole = zoo.path, parts(zoo.path)
    files = files_of(root)
    chance = random.Random(0)
    by_size = chance.choices(files, weights=[f.stat().st_size for f in files], k=FLIPS // 2)
    noticed = found = 0
    for n, path in enumerate(by_size + chance.choices(files, k=FLIPS - FLIPS // 2)):
        content = path.read_bytes()
        offset, bit = chance.randrange(len(content)), chance.randrange(8)
        path.write_bytes(content[:offset] + bytes([content[offset] ^ (1 << bit)]) + content[offset + 1 :])
        name = str(path.relative_to(root))
        seen = judged(root, path, whole)
        bad = set(check_zoo(root).filter(pl.col("state") != "ok")["file"])
        assert bad <= {name}
        assert bad or not seen
        noticed, found = noticed + seen, found + len(bad)
        if bad and n % 25 == 0:
            copy = tmp_path / "copy"
            shutil.copytree(root, copy)
            mended(copy, copy / name, whole)
            shutil.rmtree(copy)
        path.write_bytes(content)
    assert found > 0.98 * FLIPS  # the others fell on blanks of a JSON file
    assert noticed > 0.5 * FLIPS  # the others fell on copies, which nobody reads
    assert parts(root) == whole


def truncated(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def emptied(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def deleted(path: Path, chance: random.Random) -> None:
    path.unlink()


def lengthened(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(37))


def scrambled(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(path.stat().st_size))


def a_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "mine.txt").write_text("something of somebody's")


def a_loop(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_pipe(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = [truncated, truncated, truncated, emptied, deleted, lengthened, scrambled, a_folder, a_loop, a_pipe]


@pytest.mark.parametrize("damage", DAMAGE[2:])
def test_every_file_of_a_zoo_can_be_damaged_in_every_way_and_the_zoo_mended(zoo, tmp_path, damage):
    whole = parts(zoo.path)
    names = [path.relative_to(zoo.path) for path in files_of(zoo.path)]
    assert {name.parts[0] for name in names} >= {"zoo.json", "weights", "data", "measures", "pairs", "cells", "backup"}
    chance = random.Random(damage.__name__)
    for name in names:
        for again in range(DAMAGE.count(damage)):
            root = tmp_path / f"copy{again}"
            shutil.copytree(zoo.path, root)
            damage(root / name, chance)
            noticed = judged(root, root / name, whole)
            assert noticed or name.parts[0] == "backup"
            bad = mended(root, root / name, whole)
            assert len(bad)
            if damage is lengthened or str(name) in ("zoo.json", *KEPT):
                assert parts(root) == whole
            if damage is a_folder and name.parts[0] != "backup":
                (kept,) = root.rglob("mine.txt")
                assert kept.parent.name == f"{name.name}.damaged"
            shutil.rmtree(root)


def test_two_files_of_one_size_that_changed_places_are_noticed(zoo):
    whole = parts(zoo.path)
    sizes: dict[int, list[Path]] = {}
    for path in files_of(zoo.path):
        if path.parent.name == "weights":
            sizes.setdefault(path.stat().st_size, []).append(path)
    pairs = [(a, b) for same in sizes.values() for a in same for b in same if a < b]
    assert pairs
    for a, b in pairs:
        first, second = a.read_bytes(), b.read_bytes()
        a.write_bytes(second)
        b.write_bytes(first)
        said = parts(zoo.path)
        wrong = {key for key, value in said.items() if isinstance(value, StoreError)}
        assert wrong
        assert all(a.name in str(said[key]) or b.name in str(said[key]) for key in wrong)
        assert all(said[key] == whole[key] for key in set(said) - wrong)
        files = {str(path.relative_to(zoo.path)) for path in (a, b)}
        assert set(check_zoo(zoo.path).filter(pl.col("state") != "ok")["file"]) == files
        a.write_bytes(first)
        b.write_bytes(second)


def another_commit(zoo: Zoo) -> None:
    measured = zoo.stored("performance")
    assert measured is not None
    with zoo.writing() as tx:
        tx.set_models(zoo.store.models.with_columns(note=pl.lit("later")))
        tx.upsert("history", pl.DataFrame({"id": [zoo.ids[0]], "epoch": [9]}), key=["id", "epoch"])
        tx.upsert("measures/performance", measured.with_columns(value=pl.lit(0.5)),
                  key=["id", "epoch", "quantity"])  # fmt: skip


@pytest.mark.parametrize("name", ["models.parquet", "history.parquet", "measures/performance.parquet", "zoo.json"])
def test_an_older_version_of_a_file_is_noticed_and_the_newer_one_put_back_where_there_is_a_copy(zoo, name):
    old = (zoo.path / name).read_bytes()
    another_commit(zoo)
    whole = parts(zoo.path)
    (zoo.path / name).write_bytes(old)
    if name != "zoo.json":
        assert judged(zoo.path, zoo.path / name, whole)
        mended(zoo.path, zoo.path / name, whole)
        return
    assert any(isinstance(value, DamagedError) for value in parts(zoo.path).values())
    report = check_zoo(zoo.path, repair=True).filter(pl.col("state") != "ok")
    assert report.select("file", "state", "outcome").rows() == [("zoo.json", "damaged", "put back from its copy")]
    assert "is that of an earlier commit" in report["detail"][0]
    assert parts(zoo.path) == whole


def test_several_kinds_of_damage_at_once_are_mended_together(zoo):
    whole = parts(zoo.path)
    root = zoo.path
    (root / "zoo.json").write_text("{")
    for name in KEPT:
        (root / name).unlink()
    weights = sorted((root / "weights").iterdir())
    weights[0].write_bytes(b"x")
    scrambled(root / "measures" / "performance.parquet", random.Random(0))
    report = check_zoo(root, repair=True).filter(pl.col("state") != "ok")
    said = {file: outcome for file, id, outcome in report.select("file", "id", "outcome").iter_rows() if id is None}
    assert {said[name] for name in ("zoo.json", *KEPT)} == {"put back from its copy"}
    assert said["measures/performance.parquet"] == "lost: forgotten, measure again to have it"
    assert said[f"weights/{weights[0].name}"] == "lost: forgotten, no model in it is intact"
    assert (root / "zoo.json.damaged").read_text() == "{"
    left = parts(root)
    assert set(check_zoo(root)["state"]) == {"ok"}
    assert left["pairs/cka"] == whole["pairs/cka"]
    assert left["history"] == whole["history"]
    assert 0 < sum(isinstance(key, tuple) for key in left) < sum(isinstance(key, tuple) for key in whole)


def test_what_a_repair_set_aside_is_grown_and_measured_again_to_the_same_values(zoo, grid, content):
    whole = content(zoo)
    for path in sorted((zoo.path / "weights").iterdir()):
        if "@4" in path.name:
            path.unlink()
    (zoo.path / "pairs" / "cka.parquet").unlink()
    check_zoo(zoo.path, repair=True)
    assert set(za.open(zoo.path).table["status"]) == {"damaged"}
    again = za.grow(grid(), zoo.path, workers=1, checkpoints=[2, 4])
    again.measure("performance", "cka", "seed_averaging", workers=1)
    assert content(za.open(zoo.path)) == whole


def test_without_a_sound_copy_the_sentence_says_so(zoo):
    for path in (zoo.path / "backup").glob("zoo-*.json"):
        path.write_text("{}")
    (zoo.path / "zoo.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"zoo\.json .*copies in backup/ are damaged too: restore it from a copy"):
        check_zoo(zoo.path, repair=True)


def test_a_zoo_without_copies_is_sound_and_gets_them_with_its_next_commit(zoo):
    shutil.rmtree(zoo.path / "backup")
    assert set(check_zoo(zoo.path)["state"]) == {"ok"}
    with zoo.writing() as tx:
        tx.update_header(note=1)
    assert len(list((zoo.path / "backup").iterdir())) == 1 + len(KEPT)
    assert set(check_zoo(zoo.path)["state"]) == {"ok"}


def test_a_flipped_version_is_damage_and_a_newer_format_is_not(zoo):
    path = zoo.path / "zoo.json"
    content = path.read_bytes()
    assert b'"version": 1' in content
    path.write_bytes(content.replace(b'"version": 1', b'"version": 9', 1))
    with pytest.raises(DamagedError, match="checksum differs"):
        za.open(zoo.path)
    report = check_zoo(zoo.path, repair=True)
    assert report.filter(pl.col("state") != "ok")["file"].to_list() == ["zoo.json"]
    assert path.read_bytes() == content


def test_a_file_that_may_not_be_read_is_no_damage_and_nothing_is_forgotten(zoo, monkeypatch):
    name = "measures/performance.parquet"
    original = Path.open

    def refuse(self, *args, **kwargs):
        if self.name == "performance.parquet":
            raise PermissionError(13, "Permission denied")
        return original(self, *args, **kwargs)

    before = {p: p.read_bytes() for p in files_of(zoo.path)}
    monkeypatch.setattr(Path, "open", refuse)
    bad = check_zoo(zoo.path).filter(pl.col("state") != "ok")
    assert bad.select("file", "state").rows() == [(name, "unreadable")]
    with pytest.raises(StoreError, match=r"cannot repair .*performance\.parquet: Permission denied"):
        check_zoo(zoo.path, repair=True)
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in files_of(zoo.path)} == before


class Crash(BaseException):
    """Power goes off here."""


@pytest.mark.parametrize("call", ["replace", "fsync", "rename"])
def test_a_repair_cut_off_at_any_step_can_be_run_again(zoo, tmp_path, monkeypatch, call):
    (zoo.path / "zoo.json").write_text("{")
    (zoo.path / "models.parquet").unlink()
    (zoo.path / "pairs" / "cka.parquet").write_bytes(b"x")
    sorted((zoo.path / "weights").iterdir())[-1].unlink()
    done = tmp_path / "done"
    shutil.copytree(zoo.path, done)
    check_zoo(done, repair=True)
    mended_parts = parts(done)
    original = getattr(os, call)
    crashes = 0
    for step in range(60):
        root = tmp_path / f"{call}{step}"
        shutil.copytree(zoo.path, root)
        count = 0

        def crash(*args, step=step, **kwargs):
            nonlocal count
            count += 1
            if count > step:
                raise Crash
            return original(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, crash)
            patched.setattr("zoarium.zoo.store.unlink", lambda path: None)
            patched.setattr("zoarium.zoo.transaction.Transaction.rollback", lambda self: None)
            try:
                check_zoo(root, repair=True)
                finished = True
            except Crash:
                finished = False
        crashes += not finished
        check_zoo(root, repair=True)
        assert set(check_zoo(root)["state"]) == {"ok"}
        assert parts(root) == mended_parts
        shutil.rmtree(root)
        if finished:
            break
    assert finished
    assert crashes


def test_a_saved_state_of_a_program_with_a_flipped_bit_is_not_used(tmp_path, grid, content, monkeypatch):
    whole = content(za.grow(grid(), tmp_path / "whole", workers=1))
    from zoarium.growth import desk

    def stop(done, total, note):
        if total / 2 <= done < total:
            os.kill(os.getpid(), signal.SIGINT)

    kept: dict[Path, bytes] = {}
    with pytest.raises(KeyboardInterrupt):
        za.grow(grid(), tmp_path / "zoo", workers=1, save_every_s=0.0, on_progress=stop)
    states = list((tmp_path / "zoo" / "growing").glob("*.safetensors"))
    assert states
    for path in states:
        kept[path] = path.read_bytes()
        flipped = bytearray(kept[path])
        flipped[-3] ^= 4
        path.write_bytes(bytes(flipped))
        assert desk._read_state(path) == (None, {})
        path.write_bytes(kept[path])
        assert desk._read_state(path)[0] is not None
        path.write_bytes(bytes(flipped))
    assert content(za.grow(grid(), tmp_path / "zoo", workers=1)) == whole
