"""Our nets under the names and configurations of transformers, where the architectures are the same.

| net | class there |
|---|---|
| gpt2 | GPT2LMHeadModel: names differ by a prefix; GELU by its tanh approximation is called gelu_new there |
| vit | ViTForImageClassification: query, key and value are three layers there, one here |
| resnet18, resnet50 | ResNetForImageClassification: stride in the 3 x 3 convolution, the "imagenet" stem |

ResNets with the "cifar" stem and `resnet8`, `resnet14` (padded shortcuts) have no counterpart. Tensors carry the names
of the checkpoints that transformers 4 and 5 both read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import NetError

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
Converted = tuple[dict[str, Any], State]


def to_transformers(
    net: str, params: Mapping[str, Any], in_shape: tuple[int, ...], state: State, classes: tuple[str, ...] = ()
) -> Converted:
    """Configuration and tensors of a model as transformers has them.

    Parameters
    ----------
    net : str
        Registered name of the net.
    params : mapping
        Its parameters, defaults included.
    in_shape : tuple of int
        Shape of one input.
    state : dict of str to Tensor
        Tensors under our names.
    classes : tuple of str
        Names of the classes, if known.

    Returns
    -------
    tuple of dict
        Content of ``config.json``, and the tensors under their new names.

    Raises
    ------
    NetError
        For a net that transformers does not have.
    """
    converters: dict[str, Callable[..., Converted]] = {
        "gpt2": _gpt2, "vit": _vit, "resnet18": _resnet, "resnet50": _resnet,
    }  # fmt: skip
    if net not in converters:
        raise NetError(
            f"transformers has no architecture equal to the net {net!r}, only to {', '.join(converters)}; "
            "choose format='torch' or 'pt2'."
        )
    try:
        config, renamed = converters[net](net, params, in_shape, state)
    except KeyError as error:
        raise NetError(
            f"the model has no tensor {error.args[0]!r}, which the registered net {net!r} has; choose format='torch'."
        ) from error
    if net != "gpt2":
        config |= _labels(renamed["classifier.weight" if net == "vit" else "classifier.1.weight"].shape[0], classes)
    return config, renamed


def _gpt2(net: str, params: Mapping[str, Any], in_shape: tuple[int, ...], state: State) -> Converted:
    vocabulary, model_dim = state["wte.weight"].shape
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocabulary,
        "n_positions": state["wpe.weight"].shape[0], "n_embd": model_dim, "n_layer": params["n_layers"],
        "n_head": params["n_heads"], "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.02,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, "use_cache": True,
    }  # fmt: skip
    return config, {f"transformer.{name}": tensor for name, tensor in state.items()}


_BLOCK = {
    "ln_1": "layernorm_before", "self_attention.out_proj": "attention.output.dense", "ln_2": "layernorm_after",
    "mlp.0": "intermediate.dense", "mlp.3": "output.dense",
}  # fmt: skip


def _vit(net: str, params: Mapping[str, Any], in_shape: tuple[int, ...], state: State) -> Converted:
    channels, height, breadth = in_shape
    out: State = {
        "vit.embeddings.cls_token": state["class_token"],
        "vit.embeddings.position_embeddings": state["encoder.pos_embedding"],
    }
    ends = {"conv_proj": "vit.embeddings.patch_embeddings.projection", "encoder.ln": "vit.layernorm"}
    ends |= {"heads.head": "classifier"}
    for part in ("weight", "bias"):
        out |= {f"{theirs}.{part}": state[f"{ours}.{part}"] for ours, theirs in ends.items()}
        for layer in range(params["depth"]):
            ours, theirs = f"encoder.layers.encoder_layer_{layer}", f"vit.encoder.layer.{layer}"
            out |= {f"{theirs}.{b}.{part}": state[f"{ours}.{a}.{part}"] for a, b in _BLOCK.items()}
            pieces = state[f"{ours}.self_attention.in_proj_{part}"].chunk(3)
            names = ("query", "key", "value")
            out |= {f"{theirs}.attention.attention.{n}.{part}": p.clone() for n, p in zip(names, pieces, strict=True)}
    config = {
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": params["width"],
        "num_hidden_layers": params["depth"], "num_attention_heads": params["heads"],
        "intermediate_size": round(params["mlp_ratio"] * params["width"]), "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-6, "qkv_bias": True,
        "image_size": height if height == breadth else [height, breadth], "patch_size": params["patch"],
        "num_channels": channels,
    }  # fmt: skip
    return config, out


def _resnet(net: str, params: Mapping[str, Any], in_shape: tuple[int, ...], state: State) -> Converted:
    if params["stem"] != "imagenet":
        raise NetError(
            f"transformers has no ResNet with the stem {params['stem']!r} of this {net}; choose format='torch' or "
            "'pt2'."
        )
    basic = net == "resnet18"
    depths = [2, 2, 2, 2] if basic else [3, 4, 6, 3]
    sizes = [params["width"] * 2**n * (1 if basic else 4) for n in range(4)]
    config = {
        "architectures": ["ResNetForImageClassification"], "model_type": "resnet", "num_channels": in_shape[0],
        "embedding_size": params["width"], "hidden_sizes": sizes, "depths": depths,
        "layer_type": "basic" if basic else "bottleneck", "hidden_act": "relu", "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }  # fmt: skip
    return config, {_resnet_name(name): tensor for name, tensor in state.items()}


_ENDS = {
    "conv1": "resnet.embedder.embedder.convolution", "bn1": "resnet.embedder.embedder.normalization",
    "fc": "classifier.1",
}  # fmt: skip
_IN_STAGE = re.compile(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")


def _resnet_name(name: str) -> str:
    """Stages and convolutions count from one here, from nought there."""
    match = _IN_STAGE.fullmatch(name)
    if match is None:
        module, _, part = name.partition(".")
        return f"{_ENDS[module]}.{part}"
    stage, block, kind, index, part = match.groups()
    where = "shortcut" if kind == "downsample." else f"layer.{int(index) - 1}"
    what = "convolution" if kind == "conv" or (kind, index) == ("downsample.", "0") else "normalization"
    return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{where}.{what}.{part}"


def _labels(count: int, classes: tuple[str, ...]) -> dict[str, Any]:
    names = list(classes) if len(classes) == count and len(set(classes)) == count else None
    names = names or [f"LABEL_{n}" for n in range(count)]
    return {"id2label": {str(n): name for n, name in enumerate(names)}, "label2id": {v: n for n, v in enumerate(names)}}
