import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoarium as za
from zoarium.cli.app import app

SPEC = "net: mlp\nwidth: [2, 4]\nbatch_size: [50, 250]\nseed: {range: [0, 2]}\nepochs: 2\n"


def test_grow_measure_phases_report_from_a_spec(cli, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    zoo = tmp_path / "zoo"
    code, out, _ = cli("grow", spec, "-o", zoo, "--json", "-w", 1)
    assert code == 0
    assert json.loads(out)["models"] == 8
    names = ["performance", "hessian_trace", "cka", "mode_connectivity"]
    code, out, _ = cli("measure", zoo, *names, "--set", "epochs=2", "--json", "-w", 1)
    assert code == 0
    assert {row["quantity"] for row in json.loads(out)} >= {"test_loss", "hessian_trace", "cka", "mode_connectivity"}
    code, out, _ = cli("phases", zoo, "--json", "--set", "loss=0.5")
    assert code == 0
    assert len(json.loads(out)) == 4
    code, out, _ = cli("phases", zoo)
    assert code == 0
    assert "width" in out
    code, out, _ = cli("show", zoo)
    assert code == 0
    assert "8 models" in out
    one = za.open(zoo).ids[0]
    code, out, _ = cli("show", zoo, one, "--json")
    assert json.loads(out)["id"] == one
    code, out, _ = cli("report", zoo, "-o", tmp_path / "r.html", "--json")
    assert code == 0
    assert (tmp_path / "r.html").read_text().lower().startswith("<!doctype html>")
    code, out, _ = cli("export", zoo, one, "-o", tmp_path / "one")
    assert code == 0
    assert (tmp_path / "one" / "model.safetensors").exists()
    code, out, _ = cli("check", zoo)
    assert code == 0
    assert "intact" in out


def test_demo_effects_and_predict_print_their_results(cli, tmp_path, monkeypatch):
    from zoarium.studies import demo

    small = za.Grid(width=[2, 16], batch_size=[25, 250], seed=range(2), epochs=4)
    monkeypatch.setattr(demo, "demo_grid", lambda: small)
    code, out, _ = cli("demo", "-o", tmp_path / "z", "-w", 1, "-q")
    assert code == 0
    assert "batch_size" in out
    assert "report.html" in re.sub(r"\s", "", out)
    code, out, _ = cli("demo", "-o", tmp_path / "z", "-w", 1, "--json")
    assert code == 0
    assert json.loads(out)["models"] == 8
    code, out, _ = cli("effects", tmp_path / "z", "--json", "-w", 1)
    assert code == 0
    assert "transfer_gain" in {row["quantity"] for row in json.loads(out)}
    code, out, _ = cli("predict", tmp_path / "z", "--json")
    assert code == 0
    assert {row["target"] for row in json.loads(out)} == {"test_accuracy", "phase"}


def test_check_exits_with_1_and_names_what_is_damaged(cli, small_zoo):
    weights = next((small_zoo.path / "weights").iterdir())
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    code, out, _ = cli("check", small_zoo.path)
    assert code == 1
    assert "damaged" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nowhere"], "nowhere is not a zoo"),
        (["grow", "none.yaml", "-o", "z"], "cannot read the grid none.yaml"),
        (["measure", "{zoo}", "hesian_trace"], "unknown measure 'hesian_trace'. Did you mean 'hessian_trace'"),
        (["measure", "{zoo}", "cka", "--set", "samples"], "--set takes KEY=VALUE"),
        (["measure", "{zoo}", "cka", "--set", "sampels=3"], "unknown setting of cka 'sampels'"),
        (["measure", "{zoo}", "cka", "--memory", "lots"], "memory must be an amount such as '2GB'"),
        (["phases", "{zoo}"], "zoo.measure("),
        (["phases", "{zoo}", "--set", "lss=3"], "unknown threshold"),
        (["show", "{zoo}", "nobody"], "no model 'nobody'"),
        (["study", "run", "99"], "unknown study '99'"),
        (["study", "run"], "no study named"),
        (["study", "run", "01", "--seeds", "a"], "--seeds takes whole numbers"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(cli, small_zoo, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in small_zoo.path.rglob("*") if p.is_file() and not p.name.startswith(".")}
    code, out, err = cli(*(word.format(zoo=small_zoo.path) for word in words))
    assert code == 2
    assert message in re.sub(r"\s+", " ", err)
    assert "Traceback" not in out + err
    after = {p: p.stat().st_mtime_ns for p in small_zoo.path.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert before == after


def test_the_demo_does_not_overwrite_a_folder_that_is_no_zoo(cli, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    code, _, err = cli("demo", "-o", tmp_path, "--overwrite")
    assert code == 2
    assert "is not a zoo, so it is not overwritten" in re.sub(r"\s+", " ", err)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("listing", ["measures", "nets", "data"])
def test_listings_come_as_tables_and_as_json(cli, listing):
    code, out, _ = cli(listing, "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows
    assert all(row["summary"] for row in rows if row["reference"])  # a test's own has neither
    assert any(row["reference"] for row in rows)
    assert cli(listing)[0] == 0


def test_data_sets_are_listed_with_what_they_need(cli):
    rows = {row["data"]: row for row in json.loads(cli("data", "--json")[1])}
    needs = {name: rows[name]["needs"] for name in ("iris", "pydoc_topics", "mnist_5k", "cifar10", "openwebtext")}
    assert needs == {
        "iris": "nothing", "pydoc_topics": "nothing", "mnist_5k": "[data]", "cifar10": "download of 170 MB",
        "openwebtext": "[text], a local folder",
    }  # fmt: skip
    assert all(row["licence"] for row in rows.values() if row["reference"] and not row["data"].startswith("test_"))


def test_weights_of_a_foreign_file_are_reported(cli, tmp_path):
    torch.save({"state_dict": {"fc.weight": torch.randn(40, 30), "steps": torch.tensor(3)}}, tmp_path / "m.ckpt")
    code, out, _ = cli("weights", tmp_path / "m.ckpt", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["fc.weight"]["stable_rank"] > 1
    (tmp_path / "bad.pt").write_bytes(b"not weights")
    code, _, err = cli("weights", tmp_path / "bad.pt")
    assert code == 2
    assert "bad.pt" in err


def test_similarity_of_foreign_files_is_printed_and_drawn(cli, tmp_path):
    torch.manual_seed(0)
    base = torch.randn(40, 30)
    torch.save({"fc.weight": base}, tmp_path / "a.pt")
    torch.save({"module.fc.weight": base + 0.1 * torch.randn(40, 30)}, tmp_path / "b.pt")
    torch.save({"fc.weight": torch.randn(40, 30), "fc.bias": torch.zeros(40)}, tmp_path / "c.pt")
    code, out, _ = cli("similarity", tmp_path, "--json", "--tensors", "--spectra", "-o", tmp_path / "map.html")
    assert code == 0
    found = json.loads(out)
    assert [(row["a"], row["b"], row["related"]) for row in found["pairs"]] == [
        ("a.pt", "b.pt", True), ("a.pt", "c.pt", False), ("b.pt", "c.pt", False),
    ]  # fmt: skip
    assert found["pairs"][0]["spectral_distance"] < found["pairs"][0]["l2_distance"]
    assert len(found["tensors"]) == 3 and found["left_out"][0]["reason"].startswith("no other model")
    assert "fc.weight" not in (tmp_path / "map.html").read_text() and "a.pt" in (tmp_path / "map.html").read_text()
    code, out, _ = cli("similarity", tmp_path / "a.pt", tmp_path / "b.pt", "--left-out")
    assert code == 0
    assert "1 are related" in out
    code, _, err = cli("similarity", tmp_path / "a.pt", tmp_path / "b.pt", "-o", tmp_path / "map.gif")
    assert code == 2
    assert "map.gif" in err and ".svg" in err


def test_studies_are_listed_and_shown(cli):
    code, out, _ = cli("study", "list", "--json")
    assert code == 0
    assert "01" in {row["study"] for row in json.loads(out)}
    code, out, _ = cli("study", "show", "01")
    assert code == 0
    assert "claim" in out


def python(*lines):
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


def command(*words):
    return subprocess.run([sys.executable, "-m", "zoarium", *words], capture_output=True, text=True, check=False)


def test_help_and_version_do_not_load_torch():
    done = python(
        "import sys; sys.argv = ['zoarium', '--help']; from zoarium.cli import main",
        "try: main()",
        "except SystemExit: pass",
        "assert not {'torch', 'altair'} & set(sys.modules)",
    )
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    done = command("--version")
    assert done.stdout.strip() == f"zoarium {za.__version__}"


def test_the_package_itself_is_light_to_import():
    done = python(
        "import sys, zoarium as za",
        "assert not {'torch', 'polars', 'numpy', 'altair', 'sklearn'} & set(sys.modules)",
        "assert all(hasattr(za, name) for name in za.__all__)",
    )
    assert done.returncode == 0, done.stderr


def test_a_plan_names_every_program_its_route_and_the_reason_and_writes_nothing(cli, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text("net: cnn\nwidth: [4]\nbatch_size: [50, 250]\nseed: {range: [0, 3]}\nepochs: 1\n")
    code, out, _ = cli("plan", spec)
    assert code == 0
    assert "models of cnn, conv" in out
    assert "side by side, one grouped convolution a layer" in out
    code, out, _ = cli("plan", spec, "--json")
    rows = json.loads(out)
    assert sum(row["models"] for row in rows) == 6
    assert {row["route"] for row in rows} == {"conv"}
    assert list(tmp_path.iterdir()) == [spec]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'grwo'"):
        _ = za.grwo


def test_every_command_stands_in_the_reference():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    for entry in app.registered_commands:
        assert f"zoarium {entry.callback.__name__}" in page
