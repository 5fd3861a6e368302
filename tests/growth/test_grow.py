import os
import random
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
import torch
from torch import nn

import zoarium as za
from zoarium._core.errors import GridError, LockedError, ZoariumError
from zoarium.growth.job import parse_checkpoints
from zoarium.train import train_one_plainly

TINY = {"width": [2, 4], "batch_size": [50, 250], "seed": range(2), "epochs": 2}


def weights(zoo, epoch=None):
    return {i: zoo[i].state_dict(epoch) for i in zoo.ids}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[i][k], b[i][k]) for i in a for k in a[i])


def test_a_grid_becomes_a_zoo_of_trained_models(small_zoo, small_grid):
    assert sorted(small_zoo.ids) == sorted(c.id for c in small_grid)
    assert set(small_zoo.table["status"]) == {"trained"}
    assert (small_zoo.axes, small_zoo.load, small_zoo.temperature) == (["width", "batch_size"], "width", "batch_size")
    last = small_zoo.history.filter(epoch=2)
    assert len(last) == 8
    assert last["train_loss"].is_finite().all()
    assert len(small_zoo.cells()) == 4


def test_a_model_of_a_zoo_is_what_the_plain_loop_gives(small_zoo, small_grid):
    config = small_grid.expand()[3]
    plain, _ = train_one_plainly(config, za.data.load("digits"))
    grown = small_zoo[config.id].state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(grown[name], tensor, rtol=1e-4, atol=1e-5)


def test_growing_again_trains_nothing_and_growing_more_keeps_what_is_there(tmp_path):
    first = za.grow(za.Grid(**{**TINY, "seed": [0]}), tmp_path / "z", workers=1)
    before = weights(first)
    stamp = (tmp_path / "z" / "zoo.json").read_bytes()
    za.grow(za.Grid(**{**TINY, "seed": [0]}), tmp_path / "z", workers=1)
    assert (tmp_path / "z" / "zoo.json").read_bytes() == stamp
    more = za.grow(za.Grid(**TINY), tmp_path / "z", workers=1)
    assert len(more) == 8
    after = weights(more)
    assert same(before, {i: after[i] for i in before})


def test_two_grown_zoos_of_one_grid_have_the_same_bits(tmp_path):
    grid = za.Grid(**TINY)
    assert same(weights(za.grow(grid, tmp_path / "a", workers=1)), weights(za.grow(grid, tmp_path / "b", workers=2)))


def test_without_a_folder_the_zoo_is_temporary_and_can_be_saved(tmp_path):
    zoo = za.grow("mlp", width=2, epochs=1, workers=1)
    kept = zoo.save(tmp_path / "kept")
    assert same(weights(zoo), weights(kept))


@pytest.mark.parametrize(
    ("wanted", "epochs", "kept"),
    [
        ("last", 5, [5]), ("last:3", 5, [3, 4, 5]), ("every", 3, [1, 2, 3]), ("every:2", 5, [2, 4, 5]),
        ([1, -1], 5, [1, 5]), ([-2], 5, [4, 5]), ([0, 9], 5, [0, 5]), ("last", 0, [0]),
    ],
)  # fmt: skip
def test_checkpoints_are_counted_from_either_end(wanted, epochs, kept):
    assert parse_checkpoints(wanted, epochs) == kept


@pytest.mark.parametrize("wanted", ["lst", "last:0", "every:x", [1.5], [True]])
def test_checkpoints_that_make_no_sense_are_named(wanted):
    with pytest.raises(GridError, match="checkpoints must be"):
        za.grow("mlp", width=2, epochs=1, checkpoints=wanted)


def test_chosen_epochs_are_kept(tmp_path):
    zoo = za.grow("mlp", tmp_path / "z", width=2, epochs=4, checkpoints="last:2", workers=1)
    assert zoo.checkpoints["epoch"].to_list() == [3, 4]
    zoo.measure("epoch_averaging", workers=1, last=2)
    assert zoo.values("epoch_averaging_delta")["value"].is_finite().all()


def test_a_users_own_net_and_arrays_grow_and_are_measured(tmp_path):
    def tanh_net(in_shape, n_outputs, *, hidden=3):
        return nn.Sequential(nn.Linear(in_shape[0], hidden), nn.Tanh(), nn.Linear(hidden, n_outputs))

    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    mine = za.data.from_arrays(x, (x[:, 0] > 0).long(), name="mine")
    zoo = za.grow(tanh_net, tmp_path / "z", hidden=[2, 3], seed=range(2), epochs=3, batch_size=16, data=mine, workers=1)
    assert len(zoo) == 4
    opened = za.open(tmp_path / "z")
    opened.attach_net("tanh_net", tanh_net)
    opened.measure("performance", "hessian_trace", workers=1)
    assert opened.values("test_loss")["value"].is_finite().all()


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(GridError, match=r"batch.*2000.*1000|1,?000"):
        za.grow("mlp", tmp_path / "z", width=2, batch_size=[8, 2000])
    assert not (tmp_path / "z").exists()


def test_a_net_that_does_not_fit_the_labels_is_refused_before_anything_is_written(tmp_path):
    def three(in_shape, n_outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    with pytest.raises(ZoariumError, match=r"3.*10|10.*3"):
        za.grow(three, tmp_path / "z")
    assert not (tmp_path / "z").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ZoariumError, match="not empty"):
        za.grow("mlp", tmp_path, width=2, epochs=1)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_other_data_under_the_same_name_is_refused(tmp_path):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    za.grow("mlp", tmp_path / "z", width=2, epochs=1, batch_size=8, data=za.data.from_arrays(x, y, name="mine"))
    other = za.data.from_arrays(x + 1, y, name="mine")
    with pytest.raises(GridError, match="data 'mine' is not what"):
        za.grow("mlp", tmp_path / "z", width=4, epochs=1, batch_size=8, data=other)


def test_two_growers_of_one_zoo_exclude_each_other(tmp_path):
    zoo = za.grow("mlp", tmp_path / "z", width=2, epochs=1, workers=1)
    with zoo.growing(), pytest.raises(LockedError, match="is being written by"):
        za.grow("mlp", tmp_path / "z", width=[2, 4], epochs=1, workers=1)


def test_axes_belong_to_the_grid():
    with pytest.raises(GridError, match="give width to the Grid"):
        za.grow(za.Grid(), width=3)


SCRIPT = """
import sys
import zoarium as za
grid = za.Grid(width=[2, 4, 64], batch_size=[20, 50, 250], seed=range(3), epochs=12)
zoo = za.grow(grid, sys.argv[1], workers=int(sys.argv[2]), checkpoints=[3, 6, 9], save_every_s=0.0)
"""


def progress(folder):
    """Something that changes whenever an unfinished program is saved or a finished one is committed."""
    states = [(path.name, path.stat().st_mtime_ns) for path in (folder / "growing").glob("*.safetensors")]
    manifest = folder / "zoo.json"
    return sorted(states), manifest.stat().st_mtime_ns if manifest.exists() else 0


def test_killed_at_random_moments_and_resumed_it_gives_the_same_bits(tmp_path):
    def start(folder):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), "2"], start_new_session=True)

    assert start(tmp_path / "whole").wait() == 0
    chance = random.Random(0)
    kills = 0
    while True:
        process = start(tmp_path / "killed")
        changes, seen = chance.randint(1, 12), progress(tmp_path / "killed")
        while process.poll() is None and changes:
            time.sleep(chance.uniform(0, 0.02))
            now = progress(tmp_path / "killed")
            changes, seen = changes - (now != seen), now
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2
    whole, killed = za.open(tmp_path / "whole"), za.open(tmp_path / "killed")
    for epoch in (3, 6, 9, 12):
        assert same(weights(whole, epoch), weights(killed, epoch))
    order = ["id", "epoch"]
    assert whole.history.drop("seconds").sort(order).equals(killed.history.drop("seconds").sort(order))
    assert not (tmp_path / "killed" / "growing").exists()
    assert (killed.check()["state"] == "ok").all()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_saves_and_says_how_to_resume(tmp_path, workers):
    (tmp_path / "spec.yaml").write_text("width: [2, 4]\nbatch_size: [20, 50]\nseed: {range: [0, 2]}\nepochs: 20000\n")
    words = [
        sys.executable,
        "-m",
        "zoarium",
        "grow",
        str(tmp_path / "spec.yaml"),
        "-o",
        str(tmp_path / "z"),
        "-w",
        workers,
    ]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "z" / "models.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3.0)  # into the training
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to resume" in said
    assert set(za.open(tmp_path / "z").table["status"]) == {"planned"}
    assert any((tmp_path / "z" / "growing").iterdir())


def test_planned_models_are_seen_but_have_no_weights(tmp_path):
    zoo = za.grow("mlp", tmp_path / "z", width=2, epochs=1, workers=1)
    with zoo.writing() as transaction:
        transaction.upsert("models", zoo.table.with_columns(pl.lit("planned").alias("status")), key=["id"])
    assert zoo.cohorts() == []
