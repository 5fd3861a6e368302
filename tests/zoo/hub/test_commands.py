"""Sharing from the command line."""

from __future__ import annotations

import json

import zoarium as za


def test_push_and_pull_are_each_other_undone(cli, hub, small, tmp_path):
    code, out, _ = cli("push", small.path, "me/zoo", "--private", "--license", "mit", "-m", "Hello")
    assert code == 0
    assert "pushed: me/zoo at" in out
    assert hub.dataset().private
    assert hub.dataset().messages[-1] == "Hello"
    assert b"license: mit" in hub.dataset().files()["README.md"]
    code, out, _ = cli("push", small.path, "me/zoo", "--json")
    assert json.loads(out)["uploaded"] == 1  # the card, whose licence is another
    code, out, _ = cli("pull", "me/zoo", "-o", tmp_path / "pulled", "--json")
    told = json.loads(out)
    assert (told["models"], told["revision"]) == (6, hub.dataset().branches["main"])
    assert len(list((tmp_path / "pulled" / "weights").iterdir())) == 4
    code, out, _ = cli("pull", "me/zoo", "-o", tmp_path / "tables", "--tables-only")
    assert "6 models" in out
    assert not (tmp_path / "tables" / "weights").exists()
    assert len(za.open(tmp_path / "tables")) == 6


def test_a_card_of_ones_own_or_none_and_a_pull_request(cli, hub, small, tmp_path):
    (tmp_path / "mine.md").write_text("# Mine\n")
    assert cli("push", small.path, "me/zoo", "--card", tmp_path / "mine.md")[0] == 0
    assert hub.dataset().files()["README.md"] == b"# Mine\n"
    assert cli("push", small.path, "me/bare", "--no-card", "--revision", "draft")[0] == 0
    assert "README.md" not in hub.dataset("me/bare").files("draft")
    _, out, _ = cli("push", small.path, "me/bare", "--create-pr", "--json")
    assert json.loads(out)["pull_request"].endswith("/discussions/1")


def test_mistakes_are_one_sentence(cli, hub, small, tmp_path):
    code, _, err = cli("pull", "me/nothing", "-o", tmp_path / "x")
    assert code == 2
    assert "error: cannot pull 'me/nothing': the hub has no such data set" in err
    code, _, err = cli("push", small.path, "nonsense name")
    assert (code, err.count("\n")) == (2, 1)


def test_export_takes_format_epoch_type_and_licence(cli, small, tmp_path):
    words = ("--epoch", 1, "--dtype", "float16", "--license", "mit", "--json")
    code, out, _ = cli("export", small.path, "mlp-w2-s0", "-o", tmp_path / "out", *words)
    assert code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert json.loads(out)["folder"] == str(tmp_path / "out")
    assert (config["epoch"], config["weights"]["dtype"]) == (1, "float16")
    code, _, err = cli("export", small.path, "mlp-w2-s0", "-o", tmp_path / "two", "--format", "onnx")
    assert code == 2
    assert "unknown format of an export 'onnx'" in err
