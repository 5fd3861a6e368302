"""The vision transformer.

    z_0     = [class; x_1 E; ...; x_N E] + E_pos               patches as tokens            (eq. 1)
    z'_l    = MSA(LN(z_{l-1})) + z_{l-1}                                                    (eq. 2)
    z_l     = MLP(LN(z'_l)) + z'_l                             two layers with GELU         (eq. 3)
    y       = head(LN(z_L)_class)                                                           (eq. 4)

Dosovitskiy et al., "An image is worth 16x16 words: transformers for image recognition at scale", 2021
(arXiv 2010.11929).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium._core.errors import NetError
from zoarium.nets.mlp import check_sizes
from zoarium.nets.registry import net
from zoarium.nets.resnet import check_images

EPS = 1e-6  # of layer norm, as in the paper's code


def check_heads(net: str, size: int, size_name: str, heads: int, heads_name: str) -> None:
    """Attention heads must share the embedding evenly."""
    if size % heads:
        raise NetError(
            f"net {net!r}: {heads_name}={heads} attention heads cannot share {size_name}={size} evenly; make "
            f"{size_name} a multiple of {heads_name}, for example {(size // heads + 1) * heads}."
        )


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Attention softmax(q kᵀ / √d) v over tokens; a causal one sees no later token.

    Written out, because PyTorch's fused kernels have no second derivative, which the Hessian needs, and are taken one
    by one under vmap.

    Parameters
    ----------
    query, key, value : Tensor of shape (b, heads, t, d)
    causal : bool, default False

    Returns
    -------
    Tensor of shape (b, heads, t, d)
    """
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (b, heads, t, t)
    if causal:
        t = scores.shape[-1]
        later = torch.ones(t, t, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ value


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        for weight in (*self.in_proj_weight.chunk(3), self.out_proj.weight):  # each of q, k, v is a square of its own
            nn.init.xavier_uniform_(weight.detach())
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        b, t, d = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(b, t, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (b, heads, t, d / heads) each
        return self.out_proj(attend(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Layer norm before attention and before the two-layer perceptron, with a residual around each."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=EPS)
        self.self_attention = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=EPS)
        first, last = nn.Linear(width, hidden), nn.Linear(hidden, width)
        # "3", because torchvision numbers the dropouts between, which we leave out
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module]({"0": first, "1": nn.GELU(), "3": last}))
        for layer in (first, last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        x = x + self.self_attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Positions, blocks and the last layer norm."""

    def __init__(self, tokens: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.layers = nn.Sequential(
            OrderedDict((f"encoder_layer_{index}", Block(width, heads, hidden)) for index in range(depth))
        )
        self.ln = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        return self.ln(self.layers(x + self.pos_embedding))


class VisionTransformer(nn.Module):
    """Patches, a class token, an encoder and a linear head on the class token.

    Parameters
    ----------
    in_shape : (channels, height, width)
        Shape of one image, whole patches.
    n_outputs, patch, width, depth, heads, hidden : int
        Classes, pixels a side of a patch, embedding, blocks, attention heads, units inside a block's perceptron.

    Notes
    -----
    Weights start as in the paper's code (Xavier-uniform; positions N(0, 0.02²); class token 0), save that the head
    starts at N(0, 0.02²), not at 0, so that fresh nets already differ in their outputs. Parameters are called as in
    torchvision, ``class_token, conv_proj, encoder.layers.encoder_layer_0.ln_1, ..., heads.head``, whose checkpoints
    load.
    """

    def __init__(
        self, in_shape: tuple[int, int, int], n_outputs: int, patch: int, width: int, depth: int, heads: int,
        hidden: int,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, *sides = in_shape
        self.in_shape = in_shape
        self.sizes = (in_shape, n_outputs, patch, width, depth, heads, hidden)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.encoder = Encoder(1 + (sides[0] // patch) * (sides[1] // patch), width, depth, heads, hidden)
        head = nn.Linear(width, n_outputs)
        self.heads = nn.Sequential(OrderedDict(head=head))
        nn.init.trunc_normal_(self.conv_proj.weight, std=(channels * patch**2) ** -0.5)
        nn.init.normal_(head.weight, std=0.02)
        for bias in (self.conv_proj.bias, head.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def check_inputs(self, x: Tensor) -> None:
        """Refuse what are no images of the shape this net was built for."""
        if tuple(x.shape[1:]) != self.in_shape:
            raise NetError(
                f"this vision transformer has learned positions for images {self.in_shape}, found inputs of shape "
                f"{tuple(x.shape[1:])}; resize them or build a net for this shape."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, channels, height, width) -> outputs (b, c)."""
        self.check_inputs(x)
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)  # (b, N, d)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)  # (b, 1 + N, d)
        return self.heads(self.encoder(tokens)[:, 0])


@net("vit", reference="Dosovitskiy et al. 2021 (arXiv 2010.11929)")
def vit(
    in_shape: tuple[int, ...], n_outputs: int, *, patch: int = 4, width: int = 64, depth: int = 4, heads: int = 4,
    mlp_ratio: float = 4.0,
) -> VisionTransformer:  # fmt: skip
    """Vision transformer: a class token and patches of the image through `depth` pre-norm blocks, no dropout.

    Parameters
    ----------
    in_shape : (channels, height, width)
        Shape of one image.
    n_outputs : int
        Units of the last layer.
    patch : int, default 4
        Pixels a side of a patch; height and width must be multiples.
    width : int, default 64
        Embedding of a token, a multiple of `heads`.
    depth : int, default 4
        Blocks.
    heads : int, default 4
        Attention heads.
    mlp_ratio : float, default 4.0
        Units inside a block's perceptron, as a multiple of `width`.

    Returns
    -------
    VisionTransformer
        ViT-B/16 is patch 16, width 768, depth 12, heads 12: 86,567,656 parameters at 224 pixels and 1,000 classes.

    Raises
    ------
    NetError
        If inputs are no images, patches do not cover them, heads do not divide the width, or a size is not positive.

    Notes
    -----
    Attention costs (patches + 1)² a head and sample, in time and in memory.

    Examples
    --------
    >>> net = vit((1, 8, 8), 10, patch=2, width=16, depth=1, heads=2)
    >>> net(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    check_sizes("vit", patch=patch, width=width, depth=depth, heads=heads, n_outputs=n_outputs)
    channels, height, breadth = check_images("vit", in_shape)
    if height % patch or breadth % patch:
        fits = [k for k in range(1, min(height, breadth) + 1) if not (height % k or breadth % k)]
        raise NetError(
            f"net 'vit': patches of patch={patch} pixels a side do not cover images of {height} x {breadth}; "
            f"choose patch from {', '.join(map(str, fits))}."
        )
    check_heads("vit", width, "width", heads, "heads")
    hidden = round(mlp_ratio * width) if isinstance(mlp_ratio, int | float) and 0 < mlp_ratio < float("inf") else 0
    if hidden < 1:
        raise NetError(f"net 'vit': mlp_ratio must be above 0 and leave a unit at width={width}, found {mlp_ratio!r}.")
    return VisionTransformer((channels, height, breadth), n_outputs, patch, width, depth, heads, hidden)
