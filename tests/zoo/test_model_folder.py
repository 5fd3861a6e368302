"""One model as a folder for plain PyTorch and transformers."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from zoarium._core.errors import NetError, StoreError
from zoarium.nets import build
from zoarium.zoo import Zoo
from zoarium.zoo.foreign import read_model
from zoarium.zoo.model_folder import export_model

GPT2 = {"model_dim": 16, "n_layers": 2, "n_heads": 4}
VIT = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp_ratio": 2.0}


def model_of(net, params, in_shape, n_outputs, classes=()):
    """The one model of a zoo, with weights and batch norm statistics that are not the fresh ones."""
    draw = torch.Generator().manual_seed(1)
    state = {
        k: v + 0.1 * torch.rand(v.shape, generator=draw) if v.is_floating_point() else v
        for k, v in build(net, params, in_shape=in_shape, n_outputs=n_outputs).state_dict().items()
    }
    data = {
        "fingerprint": "abc", "task": "classification", "n_outputs": n_outputs, "in_shape": in_shape, "n_train": 1,
        "n_test": 1, "classes": classes,
    }  # fmt: skip
    zoo = Zoo.create(data={"d": data})
    row = {"id": "m", "status": "trained", "net": net, "net_params": json.dumps(params), "data": "d", "lr": 0.1}
    with zoo.writing() as transaction:
        transaction.set_models(pl.DataFrame([row]))
        transaction.add_weights("w", 3, 1, ["m"], {k: v[None] for k, v in state.items()})
        history = {"id": ["m"], "epoch": [3], "train_loss": [0.125], "test_accuracy": [0.75]}
        transaction.upsert("history", pl.DataFrame(history), key=["id", "epoch"])
        value = {"id": ["m"], "epoch": [3], "quantity": ["trace"], "value": [8.5], "stderr": [0.25]}
        transaction.upsert("measures/trace", pl.DataFrame(value), key=["id", "epoch", "quantity"])
    return zoo["m"]


def inputs(net, in_shape, count=3):
    draw = torch.Generator().manual_seed(2)
    if net == "gpt2":
        return torch.randint(11, (count, *in_shape), generator=draw)
    return torch.randn(count, *in_shape, generator=draw)


NETS = [
    ("mlp", {"width": 4}, (1, 8, 8)), ("cnn", {}, (1, 8, 8)), ("resnet8", {"width": 2}, (3, 8, 8)),
    ("resnet18", {"width": 2}, (3, 16, 16)), ("vit", VIT, (3, 8, 8)), ("gpt2", GPT2, (6,)), ("pinn_mlp", {}, (2,)),
]  # fmt: skip


# ---------------------------------------------------------------------- pt2


@pytest.mark.parametrize(("net", "params", "in_shape"), NETS, ids=[net for net, *_ in NETS])
def test_a_program_gives_the_outputs_of_the_net_for_any_batch(net, params, in_shape, tmp_path):
    model = model_of(net, params, in_shape, 1 if net == "pinn_mlp" else 11)
    folder = model.export(tmp_path / "out", format="pt2")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.pt2"]
    program, module = torch.export.load(folder / "model.pt2").module(), model.module()
    for count in (1, 4):
        x = inputs(net, in_shape, count)
        torch.testing.assert_close(program(x), module(x), rtol=1e-6, atol=1e-6)


def test_a_program_of_tokens_takes_shorter_sequences(tmp_path):
    model = model_of("gpt2", GPT2, (6,), 11)
    program = torch.export.load(model.export(tmp_path / "out", format="pt2") / "model.pt2").module()
    x = inputs("gpt2", (4,))
    torch.testing.assert_close(program(x), model.module()(x))


class Branching(nn.Module):
    def __init__(self, n_outputs):
        super().__init__()
        self.layer = nn.Linear(4, n_outputs)

    def forward(self, x):
        return self.layer(x) if x.sum().item() > 0 else -self.layer(x)


def test_a_net_that_cannot_be_followed_is_one_sentence_and_leaves_nothing(zoo, tmp_path):
    with zoo.writing() as transaction:
        transaction.set_models(zoo.table.with_columns(net=pl.lit("branching"), net_params=pl.lit("{}")))
        state = {k: v[None] for k, v in Branching(3).state_dict().items()}
        transaction.add_weights("b", 9, 1, ["mlp-w2-s0"], state)
    zoo.attach_net("branching", Branching)
    with pytest.raises(NetError, match=r"torch\.export cannot follow the net of model 'mlp-w2-s0'.*format='torch'"):
        zoo["mlp-w2-s0"].export(tmp_path / "out", format="pt2")
    assert not list(tmp_path.glob("*out*"))


# ---------------------------------------------------------------------- transformers

# Names, shapes and settings below are those of transformers 5.24: GPT2LMHeadModel, ViTForImageClassification and
# ResNetForImageClassification loaded these folders with no tensor missing or left over, and gave our outputs (float64,
# largest difference 2e-15 of the largest output).
GPT2_LAYER = {
    "ln_1.weight": (16,), "ln_1.bias": (16,), "attn.c_attn.weight": (16, 48), "attn.c_attn.bias": (48,),
    "attn.c_proj.weight": (16, 16), "attn.c_proj.bias": (16,), "ln_2.weight": (16,), "ln_2.bias": (16,),
    "mlp.c_fc.weight": (16, 64), "mlp.c_fc.bias": (64,), "mlp.c_proj.weight": (64, 16), "mlp.c_proj.bias": (16,),
}  # fmt: skip


def shapes(folder):
    return {k: tuple(v.shape) for k, v in load_file(folder / "model.safetensors").items()}


def test_a_decoder_becomes_a_gpt2_of_transformers(tmp_path):
    model = model_of("gpt2", {**GPT2, "context": 9}, (6,), 11)
    folder = model.export(tmp_path / "out", format="transformers")
    assert shapes(folder) == {
        "transformer.wte.weight": (11, 16), "transformer.wpe.weight": (9, 16), "transformer.ln_f.weight": (16,),
        "transformer.ln_f.bias": (16,),
        **{f"transformer.h.{layer}.{k}": v for layer in (0, 1) for k, v in GPT2_LAYER.items()},
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    wanted = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 11, "n_positions": 9, "n_embd": 16,
        "n_layer": 2, "n_head": 4, "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": True, "bos_token_id": None,
        "eos_token_id": None, "torch_dtype": "float32",
    }  # fmt: skip
    assert {k: config[k] for k in wanted} == wanted
    assert json.loads((folder / "zoarium.json").read_text())["id"] == "m"
    facts = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert (facts["library_name"], facts["pipeline_tag"]) == ("transformers", "text-generation")


def test_a_vision_transformer_becomes_a_vit_of_transformers(tmp_path):
    model = model_of("vit", VIT, (3, 8, 12), 3, classes=("cat", "dog", "fox"))
    folder = model.export(tmp_path / "out", format="transformers", dtype="bfloat16")
    layer = {
        "attention.attention.query": (8, 8), "attention.attention.key": (8, 8), "attention.attention.value": (8, 8),
        "attention.output.dense": (8, 8), "intermediate.dense": (16, 8), "output.dense": (8, 16),
    }  # fmt: skip
    expected = {
        "vit.embeddings.cls_token": (1, 1, 8), "vit.embeddings.position_embeddings": (1, 7, 8),
        "vit.embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4),
        "vit.embeddings.patch_embeddings.projection.bias": (8,), "vit.layernorm.weight": (8,),
        "vit.layernorm.bias": (8,), "classifier.weight": (3, 8), "classifier.bias": (3,),
    }  # fmt: skip
    for name, shape in layer.items():
        expected |= {f"vit.encoder.layer.0.{name}.weight": shape, f"vit.encoder.layer.0.{name}.bias": shape[:1]}
    for name in ("layernorm_before", "layernorm_after"):
        expected |= {f"vit.encoder.layer.0.{name}.{part}": (8,) for part in ("weight", "bias")}
    assert shapes(folder) == expected
    config = json.loads((folder / "config.json").read_text())
    wanted = {
        "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": [8, 12], "patch_size": 4,
        "num_channels": 3, "qkv_bias": True, "id2label": {"0": "cat", "1": "dog", "2": "fox"},
        "label2id": {"cat": 0, "dog": 1, "fox": 2}, "torch_dtype": "bfloat16",
    }  # fmt: skip
    assert {k: config[k] for k in wanted} == wanted
    state, ours = load_file(folder / "model.safetensors"), model.state_dict()
    parts = [state[f"vit.encoder.layer.0.attention.attention.{n}.weight"] for n in ("query", "key", "value")]
    packed = ours["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]
    assert torch.equal(torch.cat(parts), packed.bfloat16())


@pytest.mark.parametrize(
    ("net", "kind", "depths", "sizes", "tensors"),
    [
        ("resnet18", "basic", [2, 2, 2, 2], [2, 4, 8, 16], 122),
        ("resnet50", "bottleneck", [3, 4, 6, 3], [8, 16, 32, 64], 320),
    ],
)
def test_a_resnet_becomes_one_of_transformers(net, kind, depths, sizes, tensors, tmp_path):
    model = model_of(net, {"width": 2}, (3, 16, 16), 5)
    folder = model.export(tmp_path / "out", format="transformers")
    config = json.loads((folder / "config.json").read_text())
    wanted = {
        "model_type": "resnet", "embedding_size": 2, "hidden_sizes": sizes, "depths": depths, "layer_type": kind,
        "downsample_in_first_stage": False, "downsample_in_bottleneck": False, "num_channels": 3,
        "architectures": ["ResNetForImageClassification"], "hidden_act": "relu",
    }  # fmt: skip
    assert {k: config[k] for k in wanted} == wanted
    state, ours = load_file(folder / "model.safetensors"), model.state_dict()
    assert len(state) == len(ours) == tensors
    for theirs, name in {
        "resnet.embedder.embedder.convolution.weight": "conv1.weight",
        "resnet.embedder.embedder.normalization.running_var": "bn1.running_var",
        "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight": "layer2.0.downsample.0.weight",
        "resnet.encoder.stages.1.layers.0.shortcut.normalization.bias": "layer2.0.downsample.1.bias",
        "resnet.encoder.stages.3.layers.1.layer.1.convolution.weight": "layer4.1.conv2.weight",
        "resnet.encoder.stages.0.layers.1.layer.0.normalization.running_mean": "layer1.1.bn1.running_mean",
        "classifier.1.bias": "fc.bias",
    }.items():
        assert torch.equal(state[theirs], ours[name]), theirs


def test_nets_that_transformers_does_not_have_are_refused_with_a_way_out(zoo, tmp_path):
    for net, params, message in [
        ("resnet18", {"width": 2, "stem": "cifar"}, "no ResNet with the stem 'cifar' of this resnet18"),
        ("resnet8", {"width": 2}, "no architecture equal to the net 'resnet8', only to gpt2, vit, resnet18, resnet50"),
    ]:
        with pytest.raises(NetError, match=f"{message}.*format='torch' or 'pt2'"):
            model_of(net, params, (3, 8, 8), 3).export(tmp_path / "out", format="transformers")
    with zoo.writing() as transaction:
        transaction.set_models(zoo.table.with_columns(net=pl.lit("gpt2"), net_params=pl.lit("{}")))
    with pytest.raises(NetError, match=r"no tensor 'wte\.weight', which the registered net 'gpt2' has"):
        zoo["mlp-w2-s0"].export(tmp_path / "out", format="transformers")
    with zoo.writing() as transaction:
        transaction.set_models(zoo.table.with_columns(net=pl.lit("mine")))
    with pytest.raises(NetError, match="has the net 'mine', which transformers does not know"):
        zoo["mlp-w2-s0"].export(tmp_path / "out", format="transformers")
    assert not list(tmp_path.glob("*out*"))


# ---------------------------------------------------------------------- torch, cards, folders


def test_a_cast_touches_floating_point_tensors_only_and_the_file_has_the_checksum_told(tmp_path):
    model = model_of("resnet18", {"width": 2}, (3, 16, 16), 5)
    folder = model.export(tmp_path / "out", dtype="float16", license="mit")
    state, ours = load_file(folder / "model.safetensors"), model.state_dict()
    assert set(state) == set(ours)
    for name, tensor in ours.items():
        expected = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(state[name], expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["weights"]["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert config["weights"]["digest"] == model.place().digest
    assert config["weights"]["dtype"] == "float16"
    card = (folder / "README.md").read_text()
    assert "cast to `float16`" in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"


def test_the_snippets_of_the_card_load_the_model(tmp_path, monkeypatch):
    model = model_of("mlp", {"width": 4}, (1, 8, 8), 3)
    monkeypatch.chdir(model.export(tmp_path / "plain"))
    scope: dict = {}
    for snippet in re.findall(r"^```python\n(.*?)^```$", Path("README.md").read_text(), re.MULTILINE | re.DOTALL):
        exec(snippet, scope)
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(scope["net"](x), model.module()(x))
    monkeypatch.chdir(model.export(tmp_path / "program", format="pt2"))
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", Path("README.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(snippet, scope)
    torch.testing.assert_close(scope["net"](x), model.module()(x))


def test_the_card_tells_lineage_training_data_and_results(tmp_path):
    model = model_of("mlp", {"width": 4}, (1, 8, 8), 2, classes=("yes", "<b>no</b>|"))
    with model.zoo.writing() as transaction:
        table = model.zoo.table.with_columns(relation=pl.lit("prune"), parents=pl.Series([["elder"]]))
        transaction.set_models(table)
    card = (model.export(tmp_path / "out") / "README.md").read_text()
    for line in [
        "| `lr` | `0.1` |", "| `width` | `4` |", "| `trace` | 8.5 | 0.25 | `trace` |",
        "| `train_loss` | 0.125 | – | history |", "| `m` | prune | `elder` |", "| `elder` | training | – |",
        "| fingerprint | `abc` |", r"`yes`, &lt;b&gt;no&lt;/b&gt;\|", "None has been chosen",
    ]:  # fmt: skip
        assert line in card, line


def test_an_export_never_replaces_anything_and_is_whole_or_not_there(zoo, tmp_path, monkeypatch):
    model = zoo["mlp-w2-s0"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"full holds a thesis\.txt already; choose another folder"):
        model.export(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert (model.export(tmp_path / "empty") / "model.safetensors").exists()
    monkeypatch.setattr("zoarium.report.model_card.model_card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.export(tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "zoo"]


def test_unknown_formats_and_types_list_the_known_ones(zoo, tmp_path):
    with pytest.raises(StoreError, match=r"unknown format of an export 'onnx'.*Known: pt2, torch, transformers"):
        zoo[0].export(tmp_path / "out", format="onnx")
    with pytest.raises(StoreError, match=r"unknown dtype of an export 'int8'.*float16"):
        zoo[0].export(tmp_path / "out", dtype="int8")


def test_a_foreign_model_is_copied_tensor_by_tensor_with_a_card(tmp_path):
    source = tmp_path / "theirs"
    source.mkdir()
    state = {"b": torch.arange(3), "a": torch.rand(2, 2).bfloat16(), "empty": torch.zeros(0, 4)}
    save_file(state, source / "model.safetensors")
    (source / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModel": "evil.Evil"}}')
    foreign = read_model(source)
    folder = export_model(foreign, tmp_path / "copy", license="mit")
    copied = load_file(folder / "model.safetensors")
    assert {k: (v.dtype, v.tolist()) for k, v in copied.items()} == {k: (v.dtype, v.tolist()) for k, v in state.items()}
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "x"}
    parents = json.loads((folder / "zoarium.json").read_text())["lineage"][0]["parents"]
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert parents[0]["sha256"] == digest
    assert digest in (folder / "README.md").read_text()
    assert len(read_model(folder)) == 3
    assert load_file(export_model(foreign, tmp_path / "f32", dtype="float32") / "model.safetensors")["a"].dtype == (
        torch.float32
    )
    with pytest.raises(NetError, match=r"the architecture of 'theirs' is not known.*format='torch'"):
        export_model(foreign, tmp_path / "no", format="pt2")


def test_a_type_that_safetensors_lacks_is_named(tmp_path):
    from zoarium.zoo.model_folder.safetensors_writer import write_safetensors

    with pytest.raises(StoreError, match="tensor 'c' has the type complex128, which safetensors cannot hold"):
        write_safetensors(tmp_path / "x", {"c": ("complex128", (1,))}, lambda name: torch.zeros(1))
    with pytest.raises(StoreError, match=r"tensor 'c' should be float32 \(2,\), found float32 \(1,\)"):
        write_safetensors(tmp_path / "y", {"c": ("float32", (2,))}, lambda name: torch.zeros(1))
