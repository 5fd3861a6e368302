"""`zoarium add`: what it prints, what it counts, how it exits."""

import json

import pytest
import torch


@pytest.fixture
def checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        layers = {"fc1": torch.nn.Linear(64, 3), "out": torch.nn.Linear(3, 10)}
        torch.save(torch.nn.ModuleDict(layers).state_dict(), folder / f"{name}.pt")
    return folder


def test_add_makes_a_zoo_and_counts_what_it_took(cli, checkpoints, tmp_path):
    code, out, _ = cli("add", tmp_path / "zoo", checkpoints)
    assert code == 0 and "one" in out and "torch" in out
    assert out.splitlines()[-1] == f"2 added, 0 skipped; {tmp_path / 'zoo'} holds 2 models."
    code, out, _ = cli("add", tmp_path / "zoo", checkpoints)
    assert code == 0 and "0 added, 2 known, 0 skipped" in out


def test_add_names_what_it_skips_and_exits_with_1(cli, checkpoints, tmp_path):
    (checkpoints / "bad[b].pt").write_bytes(b"PK\x03\x04")
    code, out, _ = cli("add", tmp_path / "zoo", checkpoints)
    skipped = next(line for line in out.splitlines() if line.startswith("skipped: "))
    assert code == 1 and "bad[b].pt" in skipped and skipped.count("bad[b].pt") == 1
    assert "2 added, 1 skipped" in out


def test_add_as_json_is_the_whole_table(cli, checkpoints, tmp_path):
    code, out, _ = cli("add", tmp_path / "zoo", checkpoints, "--json", "--copy")
    content = json.loads(out)
    assert code == 0 and (content["added"], content["skipped"]) == (2, 0)
    assert [row["id"] for row in content["models"]] == ["one", "two"]
    assert cli("check", tmp_path / "zoo")[0] == 0


def test_added_models_with_a_net_are_measured_and_shown(cli, checkpoints, tmp_path):
    zoo = tmp_path / "zoo"
    assert cli("add", zoo, checkpoints, "--net", "mlp", "--set", "width=3", "--data", "digits")[0] == 0
    assert cli("measure", zoo, "performance", "-w", 1)[0] == 0
    code, out, _ = cli("show", zoo)
    assert code == 0 and "foreign" in out and "n_params" in out
    assert "test_accuracy" in cli("show", zoo, "one")[1]
    assert cli("export", zoo, "one", "-o", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_add_without_anything_readable_is_one_sentence_and_exits_with_2(cli, tmp_path):
    code, _, err = cli("add", tmp_path / "zoo", tmp_path / "nothing")
    assert code == 2 and "no zoo was made" in err and not (tmp_path / "zoo").exists()
    code, _, err = cli("add", tmp_path / "zoo", tmp_path, "--epochs", "first")
    assert code == 2
