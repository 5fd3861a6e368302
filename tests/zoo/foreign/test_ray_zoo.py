"""Zoos of the Ray era, written here in their exact layout, become zoos of ours."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import polars as pl
import pytest
import torch

import zoarium as za
from zoarium._core.errors import StoreError
from zoarium.nets import build
from zoarium.zoo.foreign.ray_zoo import net_columns

WIDTHS, BATCHES, SEEDS, EPOCHS = (2, 4), (8, 64), (0, 1, 2), 4
MEASURED_AT = 3  # the epoch whose landscape was measured


class Hostile:
    """Makes a folder when a pickle of it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (Path(self.path),)


def state_of(width: int, batch: int, seed: int, epoch: int) -> dict[str, torch.Tensor]:
    net = build("resnet18", {"width": width}, in_shape=(3, 32, 32), n_outputs=10, seed=seed)
    return {f"module.{name}": value + (0.01 * epoch + batch / 1e4 if value.is_floating_point() else 0)
            for name, value in net.state_dict().items()}  # fmt: skip


def config_of(width: int, batch: int, seed: int) -> dict:
    return {
        "cuda": True, "dataset::dump": "/cluster/data/dataset_preprocessed.pt", "model::channels_in": 3,
        "model::dropout": 0.0, "model::init_type": "kaiming_uniform", "model::nlin": "relu", "model::o_dim": 10,
        "model::type": "Resnet18_width", "model::use_bias": False, "model::width": width, "optim::lr": 0.1,
        "optim::momentum": 0.9, "optim::optimizer": "sgd", "optim::scheduler": "OneCycleLR", "optim::wd": 0.0005,
        "resources": {"cpu": 12, "gpu": 1}, "seed": seed, "testloader::workers": 4, "training::batchsize": batch,
        "training::data_path": "/cluster/data/", "training::dataloader": "normal",
        "training::epochs_train": EPOCHS, "training::loss": "crossentropy", "training::output_epoch": 1,
    }  # fmt: skip


def line_of(config: dict, epoch: int) -> dict:
    width, batch = config["model::width"], config["training::batchsize"]
    loss = 2.3 / (1 + epoch * width / math.log2(batch))
    line = {
        "train_loss": loss, "train_acc": 1 - loss / 4, "test_loss": loss + 0.1, "test_acc": 0.9 - loss / 4,
        "done": False, "training_iteration": epoch, "trial_id": "0ada0_00000", "time_this_iter_s": 1.5,
        "hostname": "node7", "config": config,
    }  # fmt: skip
    if epoch == MEASURED_AT:
        line |= {
            "representation_similarity": 0.5, "representation_similarity_pairs": [0.4, 0.5, 0.6],
            "log_hessian_trace_train": 2.0, "log_hessian_top_ev": 1.0, "log_hessian_top_ev_val": 0.5,
            "curve_mc_train_error": -3.0, "wiseft_acc_test_delta": 0.012, "gitrebasin_acc_test_delta": -0.2,
        }  # fmt: skip
    return line


def write_trial(root: Path, n: int, width: int, batch: int, seed: int, epochs=range(1, EPOCHS + 1)) -> Path:
    config = config_of(width, batch, seed)
    name = (
        f"NN_tune_trainable_0ada0_{n:05d}_{n}_model_width={width},optim_lr=0.1000,optim_wd=0.0005,seed={seed},"
        f"training_batchsize={batch}_2024-05-22_11-30-52"
    )
    trial = root / name
    trial.mkdir(parents=True)
    (trial / "params.json").write_text(json.dumps(config))
    (trial / "result.json").write_text("".join(json.dumps(line_of(config, e)) + "\n" for e in range(EPOCHS + 1)))
    (trial / "progress.csv").write_text("train_loss\n1\n")
    for epoch in epochs:
        folder = trial / f"checkpoint_{epoch:06d}"
        folder.mkdir()
        torch.save(state_of(width, batch, seed, epoch), folder / "checkpoints")
        torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, folder / "optimizer")
    return trial


@pytest.fixture(scope="module")
def ray_zoo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ray") / "resnet18_v2" / "tune_zoo"
    n = 0
    for width in WIDTHS:
        for batch in BATCHES:
            for seed in SEEDS:
                write_trial(root, n, width, batch, seed)
                n += 1
    torch.save({"trainset": torch.zeros(4, 3)}, root / "dataset_preprocessed.pt")
    (root / "index_dict.json").write_text(json.dumps({"layer": [[0, "conv2d"]], "idx_start": [0]}))
    return root


@pytest.fixture(scope="module")
def read(ray_zoo, tmp_path_factory):
    return za.read_zoo(ray_zoo.parent, tmp_path_factory.mktemp("out") / "zoo")


def test_every_trial_becomes_one_model_with_its_configuration_under_our_names(read):
    assert len(read) == 12 and set(read.table["status"]) == {"foreign"}
    row = read["0ada0_00005"].row
    wanted = {"width": 2, "batch_size": 64, "seed": 2, "lr": 0.1, "weight_decay": 0.0005, "momentum": 0.9, "epochs": 4,
              "optimizer": "sgd", "schedule": "one_cycle", "activation": "relu", "net": "resnet18"}  # fmt: skip
    assert {k: row[k] for k in wanted} == wanted
    assert json.loads(row["trial_config"])["training::loss"] == "crossentropy"
    assert "/cluster" not in row["trial_config"]


def test_what_varies_becomes_axes_with_load_and_temperature(read):
    assert (read.axes, read.load, read.temperature) == (["width", "batch_size"], "width", "batch_size")
    assert read.cells()["cell"].to_list() == [f"width={w},batch_size={b}" for w in WIDTHS for b in BATCHES]
    assert read.cells()["n"].to_list() == [3] * 4


def test_the_weights_are_those_of_the_last_checkpoint_under_plain_names(read):
    state = read["0ada0_00007"].state_dict()
    wanted = state_of(4, 8, 1, EPOCHS)
    assert set(state) == {name.removeprefix("module.") for name in wanted}
    assert all(torch.equal(state[name.removeprefix("module.")], value) for name, value in wanted.items())
    assert read["0ada0_00007"].epochs == [EPOCHS]


def test_the_curves_are_the_history(read):
    history = read["0ada0_00000"].history.sort("epoch")
    assert history["epoch"].to_list() == list(range(EPOCHS + 1))
    assert history["train_loss"][2] == line_of(config_of(2, 8, 0), 2)["train_loss"]
    assert history["test_accuracy"][4] == pytest.approx(0.9 - history["train_loss"][4] / 4)


def test_stored_measures_keep_their_epoch_and_say_where_they_come_from(read):
    trace = read.values("hessian_trace")
    assert len(trace) == 12 and set(trace["epoch"]) == {MEASURED_AT}
    assert trace["value"].to_list() == pytest.approx([math.exp(2.0)] * 12)
    said = read.info["measure_settings"][trace["settings"][0]]
    assert (said["source"], said["key"]) == ("result.json", "log_hessian_trace_train") and "cell" in said["remark"]
    assert read.values("mode_connectivity")["value"].to_list() == [-3.0] * 12
    assert read.values("epoch_averaging_delta")["value"].to_list() == pytest.approx([1.2] * 4)
    assert read.values("log_hessian_top_ev_val")["value"].to_list() == [0.5] * 12
    assert set(read.values("test_error")["epoch"]) == {MEASURED_AT}


def test_similarities_of_pairs_follow_the_order_of_the_seeds(read):
    seeds = dict(read.table.select("id", "seed").iter_rows())
    found = {(seeds[a], seeds[b]): v for a, b, v in read.values("cka").select("a", "b", "value").iter_rows()}
    assert found == {(0, 1): 0.4, (0, 2): 0.5, (1, 2): 0.6}


def test_phases_and_a_report_follow_from_what_was_stored(read, tmp_path):
    phases = read.phases()
    assert len(phases) == 4 and set(phases["load_axis"]) == {"width"}
    assert "0ada0" in read.report(tmp_path / "report.html").read_text()


def test_nets_of_the_layout_run_once_their_data_are_known(read, ray_zoo, tmp_path):
    images = za.data.from_arrays(torch.randn(60, 3, 32, 32), torch.arange(60) % 10, name="pictures")
    zoo = za.read_zoo(ray_zoo, tmp_path / "zoo", data=images)
    view = zoo.where(width=2, batch_size=8)
    view.measure("weight_norm", "performance")
    rows = view.values("train_loss").filter(pl.col("epoch") == EPOCHS)
    model = view[0].module()
    with torch.no_grad():
        train = zoo.data_of(view.ids[0]).train
        loss = torch.nn.functional.cross_entropy(model(train.x), train.y).item()
    assert rows.filter(id=view.ids[0])["value"][0] == pytest.approx(loss, rel=1e-4)
    read.set_net(data=images)
    assert [len(ref) for ref in read.cohorts()] == [6, 6]


@pytest.mark.parametrize(
    ("epochs", "wanted"), [("every", [1, 2, 3, 4]), ("last:2", [3, 4]), ("every:2", [2, 4]), ([3], [3])]
)
def test_epochs_choose_checkpoints(tmp_path, epochs, wanted):
    write_trial(tmp_path / "trials", 0, 2, 8, 0)
    zoo = za.read_zoo(tmp_path / "trials", epochs=epochs)
    assert zoo[0].epochs == wanted
    name = "layer1.0.conv1.weight"
    assert torch.equal(zoo[0].tensor(name, wanted[0]), state_of(2, 8, 0, wanted[0])[f"module.{name}"])


def test_what_is_broken_is_counted_and_named_and_the_rest_is_read(tmp_path):
    root = tmp_path / "trials"
    trials = [write_trial(root, n, 2, 8, n, epochs=[4]) for n in range(6)]
    (trials[1] / "checkpoint_000004" / "checkpoints").unlink()
    (trials[1] / "checkpoint_000004").rename(trials[1] / "elsewhere")
    trap = tmp_path / "trap"
    (trials[2] / "checkpoint_000004" / "checkpoints").write_bytes(pickle.dumps(Hostile(str(trap))))
    text = (trials[3] / "result.json").read_text()
    (trials[3] / "result.json").write_text(text[: len(text) - 300])
    (trials[4] / "params.json").write_text("{")
    (trials[5] / "params.json").unlink()
    (trials[5] / "result.json").unlink()
    added = za.add(tmp_path / "zoo", root)
    assert added.counts == {"added": 4, "known": 0, "skipped": 2, "ignored": 0} and not trap.exists()
    said = {
        Path(s).name[24:29]: (state, d) for s, state, d in added.table.select("source", "state", "detail").iter_rows()
    }
    assert said["00001"] == ("skipped", "it has no checkpoint.")
    assert said["00002"][0] == "skipped" and "not one of torch.save" in said["00002"][1]
    assert said["00003"][0] == "added" and "1 of 5 lines of result.json are cut short" in said["00003"][1]
    assert said["00004"][0] == "added" and "params.json" in said["00004"][1]
    assert said["00005"][0] == "added" and "read from the folder's name" in said["00005"][1]
    zoo = added.zoo
    assert zoo["0ada0_00005"].row["width"] == 2 and zoo["0ada0_00004"].row["batch_size"] == 8
    assert len(zoo["0ada0_00003"].history) == EPOCHS
    assert [row["detail"] for row in zoo.info["skipped"]] == [said["00001"][1], said["00002"][1]]


def test_one_bad_checkpoint_of_several_costs_only_itself(tmp_path):
    trial = write_trial(tmp_path / "trials", 0, 2, 8, 0, epochs=[2, 3, 4])
    torn = trial / "checkpoint_000003" / "checkpoints"
    torn.write_bytes(torn.read_bytes()[:-500])
    added = za.add(tmp_path / "zoo", tmp_path / "trials", epochs="every")
    assert added.zoo[0].epochs == [2, 4] and "checkpoint_000003" in added.table["detail"][0]


def test_reading_a_zoo_again_with_more_epochs_adds_these_to_the_same_models(tmp_path):
    write_trial(tmp_path / "trials", 0, 2, 8, 0)
    first = za.read_zoo(tmp_path / "trials", tmp_path / "zoo")
    again = za.read_zoo(tmp_path / "trials", tmp_path / "zoo", epochs="every")
    assert first.ids == again.ids and again[0].epochs == [1, 2, 3, 4]


def test_trials_without_checkpoint_folders_are_trials_only_where_one_says_so(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "params.json").write_text("{}")
    torch.save({"w": torch.ones(2)}, tmp_path / "runs" / "a" / "net.pt")
    assert za.add(tmp_path / "zoo", tmp_path / "runs").ids == ["net"]
    with pytest.raises(StoreError, match=r"nothing in .* can be read \(1 skipped: .*it has no checkpoint"):
        za.read_zoo(tmp_path / "runs", format="ray")


def test_mistakes_of_reading_a_zoo_are_one_sentence(tmp_path, ray_zoo):
    with pytest.raises(StoreError, match=r"unknown format of a zoo 'rya'. Did you mean 'ray'"):
        za.read_zoo(ray_zoo, format="rya")
    with pytest.raises(StoreError, match="there is no folder"):
        za.read_zoo(tmp_path / "none")
    with pytest.raises(StoreError, match=r"write last, last:5, every, every:10"):
        za.read_zoo(ray_zoo, epochs="first")
    za.add(tmp_path / "zoo", ray_zoo)
    with pytest.raises(StoreError, match=r"is a zoo already; open it with za.open"):
        za.read_zoo(tmp_path / "zoo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"nothing in .*can be read"):
        za.read_zoo(tmp_path / "empty")


def test_the_stem_of_a_residual_net_is_told_by_its_first_convolution(tmp_path):
    net = build("resnet18", {"width": 3, "stem": "cifar"}, in_shape=(3, 32, 32), n_outputs=7)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    columns = net_columns("Resnet18", za.read_model(tmp_path / "a.pt"), None)
    wanted = {"in_shape": [3, 32, 32], "n_outputs": 7, "stem": "cifar", "width": 3}
    assert columns["net"] == "resnet18" and json.loads(columns["net_params"]) == wanted
    assert columns["n_params"] == sum(p.numel() for p in net.parameters())
    assert net_columns("CNN", za.read_model(tmp_path / "a.pt"), None) == {}
    assert net_columns("Resnet50", za.read_model(tmp_path / "a.pt"), None) == {}


def test_what_a_trial_claims_takes_no_memory_and_breaks_nothing(tmp_path):
    trial = write_trial(tmp_path / "trials", 0, 2, 8, 0, epochs=[4])
    wide = {"conv1.weight": torch.zeros(2**17, 1, 7, 7, dtype=torch.int8), "fc.weight": torch.zeros(10, 8)}
    torch.save(wide, trial / "checkpoint_000004" / "checkpoints")  # as a net of this width it would take terabytes
    config = config_of(2, 8, 0) | {
        "seed": 10**400,
        "optim::lr": "fast",
        "training::batchsize": True,
        "x": "y" * 200_000,
    }
    (trial / "params.json").write_text(json.dumps(config))
    lines = [{"training_iteration": 2**70, "train_loss": 10**400}, {"training_iteration": 1, "train_loss": math.nan}]
    (trial / "result.json").write_text("\n".join(map(json.dumps, lines)) + "\n[1]\n" + "[" * 100_000)
    added = za.add(tmp_path / "zoo", tmp_path / "trials")
    row = added.zoo[0].row
    assert row["net"] is None and row["width"] == 2 and not {"seed", "lr", "batch_size"} & set(row)
    assert "is not kept in full" in added.table["detail"][0] and "2 of 4 lines" in added.table["detail"][0]
    assert added.zoo.history["epoch"].to_list() == [0, 1]


def test_data_that_do_not_fit_a_trial_leave_it_without_a_net_and_say_why(ray_zoo, tmp_path):
    added = za.add(tmp_path / "zoo", ray_zoo, data="digits")
    assert added.zoo.table["net"].null_count() == 12
    assert "'conv1.weight' has shape (2, 3, 7, 7), the net's has (2, 1, 7, 7)" in added.table["detail"][0]


def test_the_index_of_vectors_is_kept(read):
    assert read.info["index_dict"] == {"layer": [[0, "conv2d"]], "idx_start": [0]}
