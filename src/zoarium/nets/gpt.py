"""The GPT-2 decoder.

    h_0   = W_e[token] + W_p[position]
    h'_l  = h_{l-1} + attention(LN(h_{l-1}))        causal: token t sees tokens up to t
    h_l   = h'_l + MLP(LN(h'_l))                    four times as wide inside, GELU by its tanh approximation
    y     = LN(h_L) W_eᵀ                            the output layer is the token embedding ("tied")

Radford et al., "Language models are unsupervised multitask learners", 2019; the tie: Press & Wolf 2017
(arXiv 1608.05859).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium._core.errors import NetError
from zoarium.nets.mlp import check_sizes
from zoarium.nets.registry import net
from zoarium.nets.vit import attend, check_heads

STD = 0.02  # of initial weights


class Conv1D(nn.Module):
    """A linear layer with its weight as (in, out), which is how GPT-2 was published."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, in) -> (b, t, out)."""
        return x @ self.weight + self.bias


class CausalAttention(nn.Module):
    """Multi-head self-attention that sees no later token."""

    def __init__(self, model_dim: int, heads: int, std_out: float) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Conv1D(model_dim, 3 * model_dim, STD)
        self.c_proj = Conv1D(model_dim, model_dim, std_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        b, t, d = x.shape
        qkv = self.c_attn(x).view(b, t, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (b, heads, t, d / heads) each
        return self.c_proj(attend(query, key, value, causal=True).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers with four times the units between."""

    def __init__(self, model_dim: int, std_out: float) -> None:
        super().__init__()
        self.c_fc = Conv1D(model_dim, 4 * model_dim, STD)
        self.act = nn.GELU(approximate="tanh")
        self.c_proj = Conv1D(4 * model_dim, model_dim, std_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    """Layer norm before attention and before the feed-forward layers, with a residual around each."""

    def __init__(self, model_dim: int, heads: int, std_out: float) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(model_dim), CausalAttention(model_dim, heads, std_out)
        self.ln_2, self.mlp = nn.LayerNorm(model_dim), FeedForward(model_dim, std_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """Token and position embeddings, causal blocks, layer norm, and the token embedding again as output layer.

    Parameters
    ----------
    vocabulary, context, model_dim, n_layers, n_heads : int
        Tokens known, longest sequence, embedding, blocks, attention heads.

    Notes
    -----
    Weights start at N(0, 0.02²), those that write into the residual stream smaller by √(2 n_layers), biases at 0. The
    tied embedding is one parameter, ``wte.weight``. Parameters are called as in the published checkpoint: ``wte, wpe,
    h.0.ln_1, h.0.attn.c_attn, ..., ln_f``; its causal masks (``h.0.attn.bias``) are no parameters and are not needed.
    """

    def __init__(self, vocabulary: int, context: int, model_dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        std_out = STD / (2 * n_layers) ** 0.5
        self.context = context
        self.wte = nn.Embedding(vocabulary, model_dim)
        self.wpe = nn.Embedding(context, model_dim)
        self.h = nn.ModuleList(Block(model_dim, n_heads, std_out) for _ in range(n_layers))
        self.ln_f = nn.LayerNorm(model_dim)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (b, t), int64, with t up to the context -> logits of each next token (b, t, vocabulary)."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise NetError(
                "a GPT-2 takes token numbers of shape (sequences, tokens) in int64, found shape "
                f"{tuple(tokens.shape)} in {str(tokens.dtype).removeprefix('torch.')}; tokenise the text first."
            )
        t = tokens.shape[1]
        if t > self.context:
            raise NetError(
                f"sequences of {t} tokens are longer than context={self.context}; cut them or raise context."
            )
        h = self.wte(tokens) + self.wpe.weight[:t]  # (b, t, d)
        for block in self.h:
            h = block(h)
        return F.linear(self.ln_f(h), self.wte.weight)


@net("gpt2", reference="Radford et al. 2019")
def gpt2(
    in_shape: tuple[int, ...], n_outputs: int, *, model_dim: int = 64, n_layers: int = 2, n_heads: int = 4,
    context: int | None = None,
) -> GPT2:  # fmt: skip
    """GPT-2 decoder with tied embeddings, no dropout.

    Parameters
    ----------
    in_shape : (tokens,)
        Length of one sequence.
    n_outputs : int
        Tokens in the vocabulary.
    model_dim : int, default 64
        Embedding of a token, a multiple of `n_heads`; the load axis.
    n_layers : int, default 2
        Blocks.
    n_heads : int, default 4
        Attention heads.
    context : int, optional
        Longest sequence; by default the length of one sequence.

    Returns
    -------
    GPT2
        GPT-2 small is model_dim 768, 12 layers, 12 heads, context 1,024, vocabulary 50,257: 124,439,808 parameters. It
        maps int64 tokens (b, t) to logits (b, t, vocabulary).

    Raises
    ------
    NetError
        If inputs are no sequences, heads do not divide the embedding, the context is shorter than a sequence or a size
        is not positive.

    Notes
    -----
    Its outputs have a row a token: it trains on language data, whose targets are the next tokens. Attention costs t² a
    head and sequence.

    Examples
    --------
    >>> net = gpt2((8,), 100, model_dim=16, n_heads=2)
    >>> net(torch.zeros(3, 8, dtype=torch.int64)).shape
    torch.Size([3, 8, 100])
    """
    if len(in_shape) != 1:
        raise NetError(
            f"net 'gpt2' needs sequences (tokens,), but inputs have shape {tuple(in_shape)}; tokenise text into rows "
            "of one length, or choose a net for this shape."
        )
    (length,) = in_shape
    context = length if context is None else context
    check_sizes("gpt2", model_dim=model_dim, n_layers=n_layers, n_heads=n_heads, context=context, n_outputs=n_outputs)
    check_heads("gpt2", model_dim, "model_dim", n_heads, "n_heads")
    if context < length:
        raise NetError(
            f"net 'gpt2': context={context} is shorter than the sequences of {length} tokens; make it {length} or more."
        )
    return GPT2(n_outputs, context, model_dim, n_layers, n_heads)
