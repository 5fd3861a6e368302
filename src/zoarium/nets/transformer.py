"""Stacks of the house's transformers: one batched matrix product a linear layer, one for all heads of all models.

The tokens of n models are rows (n, b·t, d); attention runs on (n, b, heads, t, d / heads). Everything is written in
operations that PyTorch differentiates twice, so that Hessian-vector products work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium._core.errors import NetError
from zoarium.nets.gpt import GPT2
from zoarium.nets.stacked import StackedNet, Tensors
from zoarium.nets.vit import VisionTransformer, attend


@dataclass(frozen=True)
class BlockNames:
    """Layers of one block; `qkv` names a parameter without its ending: ``in_proj_`` or ``c_attn.``."""

    ln_1: str
    qkv: str
    out: str
    ln_2: str
    first: str
    act: str
    last: str


@dataclass(frozen=True)
class Transformer:
    """Sizes and layer names of a vision transformer or of a GPT-2.

    Attributes
    ----------
    width, heads, hidden : int
        Embedding d, attention heads, units inside a block's perceptron.
    tokens : int
        Positions known: 1 + patches, or the context.
    outputs : int
        Units of the head, or tokens in the vocabulary.
    eps : float
        Of layer norm.
    gelu : {"none", "tanh"}
        How GELU is computed.
    patch : int
        Pixels a side of a patch; 0 for a GPT-2.
    inputs : int
        Numbers in a patch; 0 for a GPT-2.
    """

    kind: Literal["vit", "gpt2"]
    width: int
    heads: int
    hidden: int
    tokens: int
    outputs: int
    eps: float
    gelu: str
    patch: int
    inputs: int
    blocks: tuple[BlockNames, ...]

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.kind == "gpt2"


def transformer_of(module: nn.Module) -> Transformer | None:
    """The description of an unchanged `VisionTransformer` or `GPT2`, or None if `module` is anything else.

    A subclass, a layer exchanged, a hook, a parametrised, frozen or tied weight, a buffer: each makes it another net.
    """
    if type(module) is VisionTransformer:
        in_shape, outputs, patch, width, depth, heads, hidden = module.sizes
        with torch.device("meta"):
            twin = VisionTransformer(*module.sizes)
        tokens, inputs = twin.encoder.pos_embedding.shape[1], in_shape[0] * patch**2
        names = tuple(_vit_names(f"encoder.layers.encoder_layer_{i}") for i in range(depth))
        eps = twin.encoder.ln.eps
        found = Transformer("vit", width, heads, hidden, tokens, outputs, eps, "none", patch, inputs, names)
    elif type(module) is GPT2:
        outputs, tokens, width, depth, heads = module.sizes
        with torch.device("meta"):
            twin = GPT2(*module.sizes)
        names = tuple(_gpt_names(f"h.{i}") for i in range(depth))
        found = Transformer("gpt2", width, heads, 4 * width, tokens, outputs, twin.ln_f.eps, "tanh", 0, 0, names)
    else:
        return None
    return found if _alike(module, twin) else None


def _vit_names(at: str) -> BlockNames:
    return BlockNames(
        f"{at}.ln_1", f"{at}.self_attention.in_proj_", f"{at}.self_attention.out_proj", f"{at}.ln_2",
        f"{at}.mlp.0", f"{at}.mlp.1", f"{at}.mlp.3",
    )  # fmt: skip


def _gpt_names(at: str) -> BlockNames:
    return BlockNames(
        f"{at}.ln_1", f"{at}.attn.c_attn.", f"{at}.attn.c_proj", f"{at}.ln_2",
        f"{at}.mlp.c_fc", f"{at}.mlp.act", f"{at}.mlp.c_proj",
    )  # fmt: skip


Note = Callable[[str, Tensor], Tensor]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _alike(module: nn.Module, twin: nn.Module) -> bool:
    """Whether a module is built like its twin, layer by layer, and nothing was hung on it."""

    def plan(net: nn.Module) -> tuple:
        layers = [
            (name, type(m), m.extra_repr(), *(vars(m).get(key) for key in ("heads", "in_shape", "context")))
            for name, m in net.named_modules()
        ]
        params = [(name, tuple(p.shape), p.requires_grad) for name, p in net.named_parameters()]
        return layers, params, [name for name, _ in net.named_buffers()]

    changed = any("forward" in vars(m) or any(getattr(m, hooks) for hooks in HOOKS) for m in module.modules())
    return not changed and plan(module) == plan(twin)


class TransformerNet(StackedNet):
    """A vision transformer or GPT-2: one batched matrix product a layer for all models."""

    kind = "transformer"

    def __init__(self, module: nn.Module, transformer: Transformer) -> None:
        super().__init__(module, "a transformer, run as one batched matrix product a layer")
        self.transformer = transformer

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        form, taken = self.transformer, dict.fromkeys(layers)
        assert isinstance(self.module, VisionTransformer | GPT2)
        self.module.check_inputs(x.flatten(0, 1) if per_model and x.dim() else x)

        def note(name: str, value: Tensor) -> Tensor:
            if name in taken:
                taken[name] = value
            return value

        x = x if per_model else x.unsqueeze(0)  # (n or 1, b, ...)
        h = self._patches(params, x, note) if form.kind == "vit" else self._tokens(params, x, note)
        lead = h.shape[:3]  # (n, b, t)
        for names in form.blocks:
            normed = note(names.ln_1, self._norm(params, names.ln_1, h))
            qkv = self._linear(params, names.qkv, normed)
            if form.kind == "gpt2":
                note(names.qkv[:-1], qkv)
            query, key, value = qkv.unflatten(-1, (3, form.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)
            mixed = attend(query, key, value, causal=form.causal).transpose(2, 3).reshape(*lead, -1)
            h = h + note(names.out, self._linear(params, f"{names.out}.", mixed))
            normed = note(names.ln_2, self._norm(params, names.ln_2, h))
            inner = note(names.first, self._linear(params, f"{names.first}.", normed))
            inner = note(names.act, F.gelu(inner, approximate=form.gelu))
            h = h + note(names.last, self._linear(params, f"{names.last}.", inner))
        if form.kind == "vit":
            h = note("encoder.ln", self._norm(params, "encoder.ln", h))[:, :, :1]
            out = note("heads.head", self._linear(params, "heads.head.", h).squeeze(2))
        else:
            h = note("ln_f", self._norm(params, "ln_f", h))
            out = torch.bmm(h.flatten(1, 2), params["wte.weight"].transpose(1, 2)).view(*lead, -1)
        for name, value in taken.items():
            if value is None:
                raise NetError(f"layer {name!r} is not run in the forward pass; choose another layer.")
        return out, {name: value for name, value in taken.items() if value is not None}

    def _linear(self, params: Tensors, name: str, h: Tensor) -> Tensor:
        weight, bias = params[f"{name}weight"], params[f"{name}bias"]
        weight = weight.transpose(1, 2) if self.transformer.kind == "vit" else weight  # (n, in, out)
        return torch.baddbmm(bias.unsqueeze(1), h.flatten(1, 2), weight).unflatten(1, h.shape[1:3])

    def _norm(self, params: Tensors, name: str, h: Tensor) -> Tensor:
        gain, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        normed = F.layer_norm(h, h.shape[-1:], eps=self.transformer.eps)
        return torch.addcmul(bias[:, None, None], normed, gain[:, None, None])

    def _patches(self, params: Tensors, x: Tensor, note: Note) -> Tensor:
        patch, n = self.transformer.patch, len(params["class_token"])
        rows = F.unfold(x.flatten(0, 1), patch, stride=patch).transpose(
            1, 2
        )  # (n b, N, C p²), channels first as filters
        count = rows.shape[1]
        rows = rows.reshape(x.shape[0], -1, rows.shape[-1]).expand(n, -1, -1)
        weight = params["conv_proj.weight"].flatten(2).transpose(1, 2)
        h = torch.baddbmm(params["conv_proj.bias"].unsqueeze(1), rows, weight).unflatten(1, (-1, count))  # (n, b, N, d)
        rows_of_patches = x.shape[-2] // patch
        note("conv_proj", h.transpose(2, 3).unflatten(3, (rows_of_patches, -1)))
        first = params["class_token"].expand(n, h.shape[1], 1, -1)
        return torch.cat([first, h], dim=2) + params["encoder.pos_embedding"]

    def _tokens(self, params: Tensors, x: Tensor, note: Note) -> Tensor:
        table = params["wte.weight"]
        n, vocabulary = table.shape[:2]
        rows = x + torch.arange(n, device=x.device).view(n, 1, 1) * vocabulary
        h = note("wte", F.embedding(rows, table.flatten(0, 1)))  # (n, b, t, d)
        return h + params["wpe.weight"][:, None, : x.shape[-1]]
