"""Stacks of vision transformers and GPT-2s with the backward pass written out.

The work of a step is cut into tiles (`zoarium.train.transformer_tile`): some models on all samples of the micro-batch,
or one model on some, as the cache allows. Samples do not interact, so gradients add up over tiles as over micro-steps.
Before the tiles weights are folded, after them the gradients of folded weights become those of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoarium.data.dataset import Split, Task
from zoarium.nets.layout import Layout
from zoarium.nets.transformer import BlockNames, Transformer
from zoarium.train.attention import LN2, LOG2E, SIGMOID, power
from zoarium.train.chain import score
from zoarium.train.cost import TRANSFORMER_TILE, tile_floats
from zoarium.train.transformer_tile import Sums, Tile, Weights

State = dict[str, Tensor]


class TransformerStack:
    """n transformers of one architecture behind the interface of :class:`~zoarium.train.chain.ChainStack`.

    Parameters
    ----------
    form : Transformer
        The architecture.
    layout : Layout
        Names and shapes of its parameters.
    n : int
        Number of models.
    task : {"classification", "regression", "language"}
        The last for a GPT-2, the others for a vision transformer.
    smoothing : sequence of float
        Label smoothing of each model.
    """

    def __init__(
        self, form: Transformer, layout: Layout, n: int, task: Task, smoothing: Sequence[float],
        dtype: torch.dtype, device: torch.device | str,
    ) -> None:  # fmt: skip
        self.form, self.layout, self.n = form, layout, n
        self.task: Task = task
        self.like = torch.zeros(0, dtype=dtype, device=device)
        self.smooths = any(smoothing)
        self.smoothing = torch.tensor(smoothing, dtype=dtype, device=device).view(n, 1, 1)
        self.offsets = torch.arange(n, device=device).view(n, 1, 1) * form.outputs
        self.params, self.weights = self._blocks()
        self.grads, self.gradients = self._blocks()
        self.adds_up = True
        self.buffers: State = {}
        self.factors = (LOG2E * (form.width // form.heads) ** -0.5, SIGMOID if form.gelu == "tanh" else 1.0)
        self.folded = [self._folded(names) for names in form.blocks]
        self.sums = [self._sums(names) for names in form.blocks]
        self.last_norm, self.head_name = ("encoder.ln", "heads.head.") if form.kind == "vit" else ("ln_f", "wte.")
        head = self.weights[f"{self.head_name}weight"]
        self.head, self.head_back, self.head_sum = (torch.zeros_like(head) for _ in range(3))
        self._tiles: dict[tuple[int, int, int], Tile] = {}

    def _blocks(self) -> tuple[list[Tensor], State]:
        """Zeros for every parameter: blocks (n, size), a matrix each and one for all vectors; and views by name."""
        blocks, views, small = [], {}, 0
        for name, shape in self.layout.shapes:
            if self._is_matrix(name):
                inner = (math.prod(shape[1:]), shape[0]) if self._turned(name) else shape
                views[name] = self.like.new_zeros(self.n, *inner)
                blocks.append(views[name].view(self.n, -1))
            else:
                small += math.prod(shape)
        blocks.append(self.like.new_zeros(self.n, small))
        start = 0
        for name, shape in self.layout.shapes:
            if name not in views:
                inner = shape[1:] if self.form.kind == "vit" and len(shape) == 3 else shape  # without the batch's axis
                views[name] = blocks[-1][:, start : start + math.prod(shape)].unflatten(1, inner)
                start += math.prod(shape)
        return blocks, views

    def _is_matrix(self, name: str) -> bool:
        shape = dict(self.layout.shapes)[name]
        return len(shape) > 1 and name.endswith("weight") and name != "wpe.weight"

    def _turned(self, name: str) -> bool:
        """Whether a matrix is published as (out, in); here all are (in, out)."""
        return self.form.kind == "vit" and self._is_matrix(name)

    def _folded(self, names: BlockNames) -> Weights:
        w, new = self.weights, torch.empty_like
        qkv, out, first, last = (w[f"{at}weight"] for at in _linears(names))
        out_b, last_b = (self.like.new_empty(self.n, self.form.width) for _ in range(2))
        return Weights(new(qkv), new(qkv), new(out), out_b, new(first), new(first), new(last), last_b)

    def _sums(self, names: BlockNames) -> Sums:
        """Of folded layers buffers of their own, of the others the gradients themselves."""
        g = self.gradients
        qkv, out, first, last = _linears(names)
        outs, lasts = ((g[f"{at}weight"], g[f"{at}bias"]) for at in (out, last))
        return Sums(torch.empty_like(g[f"{qkv}weight"]), *outs, torch.empty_like(g[f"{first}weight"]), *lasts)

    def load(self, row: int, state: Mapping[str, Tensor]) -> None:
        """Put the weights of one model in its row."""
        for name, view in self.weights.items():
            tensor = state[name].detach()
            view[row] = tensor.flatten(1).T if self._turned(name) else tensor.reshape(view.shape[1:])

    def dump(self, architecture: int, rows: Sequence[int]) -> tuple[State, State]:
        """Named parameters (k, *shape) and buffers of some rows (copies)."""
        index = torch.as_tensor(rows, device=self.like.device)
        params = {}
        for name, shape in self.layout.shapes:
            taken = self.weights[name][index]
            params[name] = (taken.transpose(1, 2) if self._turned(name) else taken).reshape(-1, *shape).contiguous()
        return params, {}

    def inputs(self, x: Tensor) -> Tensor:
        """Return samples as this stack reads them: images or tokens."""
        return x.to(self.like) if self.form.kind == "vit" else x.to(self.like.device)

    def gather(self, x: Tensor, y: Tensor, index: Tensor) -> list[tuple[Tensor, ...]]:
        """Micro-batches for :meth:`accumulate`: rows `index` (m, n, b) of the inputs and targets."""
        flat, shape = index.flatten(), index.shape
        rows, targets = x.index_select(0, flat), y.index_select(0, flat)
        return list(
            zip(rows.view(*shape, *x.shape[1:]).unbind(0), targets.view(*shape, *y.shape[1:]).unbind(0), strict=True)
        )

    def accumulate(self, batch: tuple[Tensor, ...]) -> None:
        """Add the gradients of the summed losses of one micro-batch a model."""
        x, y = batch  # (n, b, ...)
        for total in self._fresh:
            total.zero_()
        self._fold()
        b, t = x.shape[1], self._length(x)
        most = self._most(t)
        models, samples = (_even(self.n, max(1, most // b)), b) if most >= b else (1, _even(b, most))
        for first in range(0, self.n, models):
            rows = slice(first, min(first + models, self.n))
            for s in range(0, b, samples):
                self._train_tile(rows, x[rows, s : s + samples], y[rows, s : s + samples])
        self._unfold()

    @property
    def _fresh(self) -> Iterator[Tensor]:
        """What must be zero before the tiles of a micro-batch add to it."""
        for total in self.sums:
            yield from (total.qkv, total.first)
        yield self.head_sum
        if not self.adds_up:
            yield from self.grads

    def _most(self, t: int) -> int:
        """Samples, of whichever models, that a tile may hold."""
        return max(1, TRANSFORMER_TILE // (4 * tile_floats(self.form, t)))

    def _length(self, x: Tensor) -> int:
        return self.form.tokens if self.form.kind == "vit" else x.shape[-1]

    def _tile(self, k: int, m: int, t: int) -> Tile:
        if (k, m, t) not in self._tiles:
            if len(self._tiles) == 4:
                self._tiles.clear()
            self._tiles[k, m, t] = Tile(self.form, self.like, k, m, t)
        return self._tiles[k, m, t]

    def _train_tile(self, rows: slice, x: Tensor, y: Tensor) -> None:
        k, m, t = len(x), x.shape[1], self._length(x)
        tile = self._tile(k, m, t)
        folded = [Weights(*(tensor[rows] for tensor in one)) for one in self.folded]
        sums = [Sums(*(tensor[rows] for tensor in one)) for one in self.sums]
        self._embed(tile, rows, x)
        normed = tile.forward(folded, keep=True)
        delta = torch.bmm(normed, self._head_of(self.head, rows), out=tile.out)  # (k, rows, c)
        scale = 1.0
        if self.task == "regression":
            delta.sub_(y).mul_(2 / self.form.outputs)
        else:
            self._minus_targets(delta, y.reshape(k, -1, 1), self.smoothing[rows])
            scale = 1 / t if self.task == "language" else 1.0
        total = self.head_sum[rows]
        turned = (delta, normed) if self.form.kind == "gpt2" else (normed, delta)
        torch.baddbmm(total, turned[0].transpose(1, 2), turned[1], alpha=scale, out=total)
        back = scale * (1.0 if self.task == "regression" else LN2)
        head = self._head_of(self.head_back, rows).transpose(1, 2)
        torch.baddbmm(tile.d_end, delta, head, beta=0, alpha=back, out=tile.d_end)
        self._embed_back(tile, rows, x, tile.backward(folded, sums))

    def _minus_targets(self, out: Tensor, y: Tensor, smoothing: Tensor) -> None:
        """From logits times log₂e (k, rows, c) to softmax minus the smoothed target, in place."""
        power(out)
        out.div_(out.sum(-1, keepdim=True))
        if self.smooths:
            out.sub_(smoothing / self.form.outputs)
        out.scatter_add_(-1, y, (smoothing - 1).expand(y.shape))

    def _head_of(self, head: Tensor, rows: slice) -> Tensor:
        return head[rows].transpose(1, 2) if self.form.kind == "gpt2" else head[rows]  # (k, d, c)

    def _embed(self, tile: Tile, rows: slice, x: Tensor) -> None:
        """Put embedded tokens of mean zero in a tile; `x` is (k, m, ...), or (1, m, ...) for all."""
        tokens, w = tile.tokens, self.weights
        k, m, t, d = tokens.shape
        if self.form.kind == "vit":
            tile.patches = F.unfold(x.flatten(0, 1), self.form.patch, stride=self.form.patch).transpose(1, 2)
            tile.patches = tile.patches.reshape(len(x), m * (t - 1), -1)  # channels first, as in the filters
            patches = torch.bmm(tile.patches.expand(k, -1, -1), w["conv_proj.weight"][rows]).view(k, m, t - 1, d)
            positions = w["encoder.pos_embedding"][rows]
            bias = positions[:, 1:] + w["conv_proj.bias"][rows].unsqueeze(1)
            torch.add(patches, bias.unsqueeze(1), out=tokens[:, :, 1:])
            tokens[:, :, 0] = w["class_token"][rows] + positions[:, :1]
        else:
            index = (x + self.offsets[:k]).flatten()
            torch.index_select(w["wte.weight"][rows].flatten(0, 1), 0, index, out=tokens.view(-1, d))
            tokens.add_(w["wpe.weight"][rows, :t].unsqueeze(1))
        tokens.sub_(tokens.mean(-1, keepdim=True))

    def _embed_back(self, tile: Tile, rows: slice, x: Tensor, d: Tensor) -> None:
        g, t = self.gradients, self._length(x)
        by_position = d.unflatten(1, (-1, t)).sum(1)  # (k, t, d)
        if self.form.kind == "vit":
            g["encoder.pos_embedding"][rows].add_(by_position)
            g["class_token"][rows].add_(by_position[:, :1])
            g["conv_proj.bias"][rows].add_(by_position[:, 1:].sum(1))
            total = g["conv_proj.weight"][rows]
            patches = d.unflatten(1, (-1, t))[:, :, 1:].flatten(1, 2)
            torch.baddbmm(total, tile.patches.transpose(1, 2), patches, out=total)
        else:
            g["wpe.weight"][rows, :t].add_(by_position)
            index = (x + self.offsets[: len(x)]).flatten()
            g["wte.weight"][rows].view(-1, d.shape[-1]).index_add_(0, index, d.flatten(0, 1))

    def _fold(self) -> None:
        w, (query, inner) = self.weights, self.factors
        for names, folded in zip(self.form.blocks, self.folded, strict=True):
            self._fold_norm(names.ln_1, names.qkv, folded.qkv, folded.qkv_back, query, self.form.width)
            self._fold_norm(names.ln_2, f"{names.first}.", folded.first, folded.first_back, inner)
            for at, weight, bias in ((names.out, folded.out, folded.out_b), (names.last, folded.last, folded.last_b)):
                for own, centred in ((w[f"{at}.weight"], weight), (w[f"{at}.bias"], bias)):
                    torch.sub(own, own.mean(-1, keepdim=True), out=centred)
        head, back = (self._head_of(tensor, slice(None)) for tensor in (self.head, self.head_back))
        self._fold_norm(self.last_norm, self.head_name, head, back, 1.0 if self.task == "regression" else LOG2E)

    def _fold_norm(
        self, norm: str, layer: str, weight: Tensor, back: Tensor, factor: float, columns: int | None = None
    ) -> None:
        """C g W + 1 bᵀ / d and C g W, the first `columns` times a factor."""
        own, gain, shift, bias = self._around(norm, layer)
        torch.mul(own, gain.unsqueeze(2), out=back)
        shifted = torch.bmm(shift.unsqueeze(1), own)  # (n, 1, out)
        if bias is not None:
            shifted.add_(bias.unsqueeze(1))
        shifted.div_(self.form.width)
        back.sub_(back.mean(1, keepdim=True))
        if factor != 1:
            back[..., :columns].mul_(factor)
            shifted[..., :columns].mul_(factor)
        torch.add(back, shifted, out=weight)

    def _around(self, norm: str, layer: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        w = self.weights
        own = w[f"{layer}weight"]
        own = own.transpose(1, 2) if layer == "wte." else own  # a tied head has no bias
        return own, w[f"{norm}.weight"], w[f"{norm}.bias"], w.get(f"{layer}bias")

    def _unfold(self) -> None:
        query, inner = self.factors
        for names, folded, total in zip(self.form.blocks, self.folded, self.sums, strict=True):
            self._unfold_norm(names.ln_1, names.qkv, total.qkv, folded.qkv, query, self.form.width)
            self._unfold_norm(names.ln_2, f"{names.first}.", total.first, folded.first, inner)
        head, spare = (self._head_of(tensor, slice(None)) for tensor in (self.head_sum, self.head))
        self._unfold_norm(self.last_norm, self.head_name, head, spare, 1.0)  # its factor is in the sum already

    def _unfold_norm(
        self, norm: str, layer: str, total: Tensor, spare: Tensor, factor: float, columns: int | None = None
    ) -> None:
        """Gradients of weight, bias, gain and shift from M + 1 sᵀ; `spare` is overwritten."""
        g = self.gradients
        own, gain, shift, bias = self._around(norm, layer)
        if factor != 1:
            total[..., :columns].mul_(factor)
        s = total.mean(1, keepdim=True)  # (n, 1, out)
        total.sub_(s)
        torch.mul(total, own, out=spare)
        g[f"{norm}.weight"].add_(spare.sum(2))
        g[f"{norm}.bias"].add_(torch.bmm(own, s.transpose(1, 2)).squeeze(2))
        if bias is not None:
            g[f"{layer}bias"].add_(s.squeeze(1))
        torch.mul(total, gain.unsqueeze(2), out=spare)
        spare.addcmul_(shift.unsqueeze(2), s)
        g[f"{layer}weight"].add_(spare.transpose(1, 2) if layer == "wte." else spare)

    def evaluate(self, split: Split, rows: slice) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy (of tokens, for language) of a contiguous slice of models, each (k,)."""
        x, y = split.x, split.y
        self._fold()
        t = self._length(x)
        most = self._most(t)
        models = _even(rows.stop - rows.start, max(1, most // 32))
        samples = max(1, min(len(x), most // models))
        totals = []
        for first in range(rows.start, rows.stop, models):
            part = slice(first, min(first + models, rows.stop))
            total = self.like.new_zeros(2, part.stop - part.start)
            for s in range(0, len(x), samples):
                out = self._outputs(part, x[s : s + samples])
                total += torch.stack(self._score(out, y[s : s + samples]))
            totals.append(total / len(x))
        loss, accuracy = torch.cat(totals, dim=1)
        return loss, accuracy

    def _outputs(self, rows: slice, x: Tensor) -> Tensor:
        """Outputs (k, rows, c) of some models on samples they share."""
        tile = self._tile(rows.stop - rows.start, len(x), self._length(x))
        self._embed(tile, rows, x.unsqueeze(0))
        folded = [Weights(*(tensor[rows] for tensor in one)) for one in self.folded]
        out = torch.bmm(tile.forward(folded, keep=False), self._head_of(self.head, rows))
        return out if self.task == "regression" else out.mul_(LN2)

    def _score(self, out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out = out.transpose(1, 2).contiguous()
        if self.task != "language":
            return score(out, y, self.task)
        loss, right = score(out, y.flatten(), "classification")
        return loss / y.shape[1], right / y.shape[1]


def _linears(names: BlockNames) -> tuple[str, str, str, str]:
    """Names of the linear layers, up to ``weight`` and ``bias``."""
    return names.qkv, f"{names.out}.", f"{names.first}.", f"{names.last}."


def _even(count: int, most: int) -> int:
    """The size of equal parts of `count`, at most `most` each."""
    return -(-count // -(-count // min(most, count)))
