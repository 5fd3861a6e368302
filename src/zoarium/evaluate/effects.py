"""What a cell of a zoo is good for: averaging, ensembling, pruning, fine-tuning.

Every measure here has scope "cell": its models differ in the seed alone. A *delta* or *gain* is a score after minus a
score before, in points (accuracy in per cent, or 100 R² for regression; see :mod:`zoarium.evaluate.scores`), on the
test split of the models' own data. Both are scores of the same test samples, so the standard error is the analytic
paired one, sd_i(after_i - before_i) / √N: it holds for these models and says nothing of other seeds, whose variation
shows between cells.

The set of questions follows the downstream studies of "A model zoo on phase transitions in neural networks", 2025.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import MeasureError, NetError
from zoarium._core.estimates import Estimates
from zoarium._core.seeds import stream
from zoarium.combine.averaging import average_epochs, average_groups
from zoarium.combine.ensembling import ensemble_outputs
from zoarium.data.dataset import Dataset
from zoarium.data.shift import shifted_task
from zoarium.edit.pruning import magnitude_prune
from zoarium.evaluate.phases import effects_by_phase, stored_effects
from zoarium.evaluate.scores import log_losses, outputs, sample_losses, sample_scores, score_on
from zoarium.measure.alignment import align_to
from zoarium.measure.registry import measure
from zoarium.zoo.batchnorm import reestimate_batchnorm
from zoarium.zoo.cohort import Cohort

__all__ = [
    "EFFECTS", "effects_by_phase", "ensembling", "epoch_averaging", "fine_tuning", "fresh_start", "pruning",
    "seed_averaging", "stored_effects",
]  # fmt: skip

EFFECTS = ("seed_averaging", "epoch_averaging", "ensembling", "pruning", "fine_tuning")

Cells = Sequence[Sequence[int]]
CHECKED = 32  # inputs on which alignment must leave the outputs as they were
FRACTIONS = (50, 80, 90, 95)  # per cent of the weights pruned


@dataclass(frozen=True)
class _Plan:
    """The cells that can be evaluated, over a cohort of nothing but their models."""

    cohort: Cohort
    groups: list[list[int]]
    kept: list[int]
    reasons: list[str]

    @classmethod
    def of(cls, cohort: Cohort, cells: Cells, least: int = 1) -> _Plan:
        finite = _finite_rows(cohort)
        reasons = []
        for cell in cells:
            broken = [cohort.ids[i] for i in cell if not finite[i]]
            if len(cell) < least:
                reasons.append(f"needs {least} models in the cell, found {len(cell)}")
            else:
                reasons.append(f"weights of {broken[0]} are not finite" if broken else "")
        kept = [n for n, reason in enumerate(reasons) if not reason]
        rows = sorted({i for n in kept for i in cells[n]})
        place = {row: n for n, row in enumerate(rows)}
        return cls(cohort.select(rows), [[place[i] for i in cells[n]] for n in kept], kept, reasons)

    def mean(self, members: Tensor) -> Tensor:
        """Mean over the members of each cell: (models, N) -> (cells, N)."""
        return ensemble_outputs(members, self.groups)

    def estimates(self, differences: Tensor) -> Estimates:
        """Per-cell mean of paired differences (cells, N) with its standard error; NaN and a reason elsewhere."""
        n = len(self.reasons)
        value, stderr, samples = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, dtype=np.int64)
        reasons = list(self.reasons)
        for cell, row in zip(self.kept, differences.double().numpy(), strict=True):
            if not np.isfinite(row).all():
                reasons[cell] = "outputs are not finite"
                continue
            value[cell], samples[cell] = row.mean(), len(row)
            stderr[cell] = row.std(ddof=1) / len(row) ** 0.5 if len(row) > 1 else np.nan
        return Estimates(value, stderr, samples, 0, reasons)

    def nothing(self, reason: str) -> Estimates:
        """NaN for every cell."""
        n = len(self.reasons)
        return Estimates(np.full(n, np.nan), np.nan, 0, 0, [own or reason for own in self.reasons])


@measure(
    "seed_averaging", scope="cell", quantities=("plain_averaging_delta", "aligned_averaging_delta"),
    reference="Ainsworth, Hayase & Srinivasa 2023, 'Git Re-Basin'; Wortsman et al. 2022, 'Model soups'",
    cost="one weight matching a model, two forward passes a cell",
)  # fmt: skip
def seed_averaging(cohort: Cohort, cells: Cells, data: Dataset) -> dict[str, Estimates]:
    """Score of the mean of a cell's weights minus the mean score of its models, in points.

    ``plain_averaging_delta`` averages the weights as they are; ``aligned_averaging_delta`` first permutes the hidden
    units of every model to match the first of its cell. Batch norm is re-estimated on the training data.
    """
    plan = _Plan.of(cohort, cells, least=2)
    if not plan.kept:
        return {name: plan.nothing("") for name in ("plain_averaging_delta", "aligned_averaging_delta")}
    members = plan.mean(score_on(plan.cohort, data))  # (cells, N)

    def delta(models: Cohort) -> Estimates:
        mean = reestimate_batchnorm(average_groups(models, plan.groups), data.train.x)
        return plan.estimates(score_on(mean, data) - members)

    plain = delta(plan.cohort)
    try:
        aligned = delta(align_to(plan.cohort, plan.groups, x=data.train.x[:CHECKED]))
    except NetError as error:  # a net whose symmetries cannot be derived can still be averaged as it is
        aligned = plan.nothing(str(error))
    return {"plain_averaging_delta": plain, "aligned_averaging_delta": aligned}


@measure(
    "epoch_averaging", scope="cell", quantities=("epoch_averaging_delta",), needs_checkpoints=True,
    reference="Izmailov et al. 2018, 'Averaging weights leads to wider optima and better generalization'",
    cost="one forward pass a model",
)  # fmt: skip
def epoch_averaging(
    cohort: Cohort, cells: Cells, data: Dataset, *, last: int = 5, earlier: Sequence[Cohort] = ()
) -> dict[str, Estimates]:
    """Score of the mean of a model's last checkpoints minus the score of its last one, averaged over the cell.

    Parameters
    ----------
    last : int, default 5
        Checkpoints averaged, the measured one included.
    earlier : sequence of Cohort
        The same rows at earlier checkpoints, oldest first.
    """
    plan = _Plan.of(cohort, cells)
    past = [c for c in earlier if not all(torch.equal(c.params[k], v) for k, v in cohort.params.items())]
    if len(past) < last - 1:
        found = f"needs the last {last} checkpoints, found {len(past) + 1}; grow the zoo with checkpoints every epoch"
        return {"epoch_averaging_delta": plan.nothing(found)}
    place = {name: row for row, name in enumerate(cohort.ids)}
    rows = [place[name] for name in plan.cohort.ids]
    mean = average_epochs([*(c.select(rows) for c in past), plan.cohort], last)
    mean = reestimate_batchnorm(mean, data.train.x)
    gain = score_on(mean, data) - score_on(plan.cohort, data)  # (models, N)
    return {"epoch_averaging_delta": plan.estimates(plan.mean(gain))}


@measure(
    "ensembling", scope="cell", quantities=("ensembling_gain", "ensembling_loss_gain"),
    reference="Lakshminarayanan, Pritzel & Blundell 2017", cost="one forward pass a model",
)  # fmt: skip
def ensembling(
    cohort: Cohort, cells: Cells, data: Dataset, *, of: Literal["probabilities", "logits"] = "probabilities"
) -> dict[str, Estimates]:
    """Score of a cell's mean prediction minus the mean score of its models, and the same for the loss.

    ``ensembling_gain`` is in points; ``ensembling_loss_gain`` is the members' mean test loss minus the ensemble's, in
    nats (or units of the squared error), and is never negative for ``of="probabilities"``.
    """
    plan = _Plan.of(cohort, cells, least=2)
    if not plan.kept:
        return {name: plan.nothing("") for name in ("ensembling_gain", "ensembling_loss_gain")}
    out = outputs(plan.cohort, data.test.x).double()  # (n, N, c)
    scores = plan.mean(sample_scores(out, data.test, data.task))
    losses = plan.mean(sample_losses(out, data.test, data.task))
    if data.task != "regression":
        pooled = out.log_softmax(-1) if of == "logits" else out.softmax(-1)
        mean = ensemble_outputs(pooled, plan.groups)  # (cells, N, c)
        log_mean = mean.log_softmax(-1) if of == "logits" else mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
        gain, loss = sample_scores(log_mean, data.test, data.task) - scores, log_losses(log_mean, data.test)
    else:
        mean = ensemble_outputs(out, plan.groups)
        gain = sample_scores(mean, data.test, data.task) - scores
        loss = sample_losses(mean, data.test, data.task)
    return {"ensembling_gain": plan.estimates(gain), "ensembling_loss_gain": plan.estimates(losses - loss)}


@measure(
    "pruning", scope="cell", quantities=tuple(f"pruning_delta_{f}" for f in FRACTIONS),
    reference="Han et al. 2015, 'Learning both weights and connections for efficient neural networks'",
    cost="five forward passes a model",
)  # fmt: skip
def pruning(
    cohort: Cohort, cells: Cells, data: Dataset, *, prune: Literal["global", "layer"] = "global"
) -> dict[str, Estimates]:
    """Score after one-shot magnitude pruning of 50, 80, 90 and 95 % of the weights minus the score before, in points.

    The mean over the cell's models; no training follows. Batch norm is re-estimated on the training data.
    """
    plan = _Plan.of(cohort, cells)
    before = score_on(plan.cohort, data) if plan.kept else torch.zeros(0, 1)
    out = {}
    for percent in FRACTIONS:
        pruned = reestimate_batchnorm(magnitude_prune(plan.cohort, percent / 100, scope=prune), data.train.x)
        after = score_on(pruned, data) if plan.kept else before
        out[f"pruning_delta_{percent}"] = plan.estimates(plan.mean(after - before)) if plan.kept else plan.nothing("")
    return out


@measure(
    "fine_tuning", scope="cell", quantities=("transfer_gain", "forgetting"),
    reference="Yosinski et al. 2014, 'How transferable are features in deep neural networks?'",
    cost="training twice for a few epochs",
)  # fmt: skip
def fine_tuning(
    cohort: Cohort, cells: Cells, data: Dataset, *, shift: str = "auto", severity: float = 1.0, epochs: int = 5,
    lr: float = 0.02, batch_size: int = 64, seed: int = 0,
) -> dict[str, Estimates]:  # fmt: skip
    """What a model is worth as a start on a shifted task, and what it forgets there.

    ``transfer_gain`` is the target-test score after training for some epochs from the model minus the score after the
    same training from new initial weights; ``forgetting`` is the source-test score before minus after. Both in points,
    averaged over the cell's models.

    Parameters
    ----------
    shift : str, default "auto"
        See :func:`zoarium.data.shift.shifted_task`.
    severity : float, default 1
        Strength of the shift.
    epochs, lr, batch_size
        The training on the target; everything else as :class:`zoarium.zoo.config.Training` has it by default.
    seed : int, default 0
        Draws the shift, the data order and the new initial weights.
    """
    from zoarium.train import fine_tune
    from zoarium.zoo.config import Training

    plan = _Plan.of(cohort, cells)
    if not plan.kept:
        return {name: plan.nothing("") for name in ("transfer_gain", "forgetting")}
    target = shifted_task(data, shift, severity, seed)
    recipe = Training(epochs=epochs, lr=lr, batch_size=batch_size)
    seeds = [stream("fine_tuning", seed, name) for name in plan.cohort.ids]  # a model's own, whatever stands beside it
    tuned = fine_tune(plan.cohort, target, recipe, seeds=seeds)
    fresh = fine_tune(fresh_start(plan.cohort, seed), target, recipe, seeds=seeds)
    gain = score_on(tuned, target) - score_on(fresh, target)
    lost = score_on(plan.cohort, data) - score_on(tuned, data)
    return {"transfer_gain": plan.estimates(plan.mean(gain)), "forgetting": plan.estimates(plan.mean(lost))}


def fresh_start(cohort: Cohort, seed: int = 0) -> Cohort:
    """The cohort with new initial weights, drawn from `seed` and the model's id.

    By each layer's own `reset_parameters`; a net with parameters of its own, such as a transformer's positions, is
    built anew by the factory it came from.

    Raises
    ------
    MeasureError
        When a layer with parameters has no ``reset_parameters`` and the net was not built by zoarium, so that nobody
        knows how it starts.
    """
    layers = [m for m in cohort.module.modules() if list(m.parameters(recurse=False))]
    rebuild = getattr(cohort.module, "rebuild", None)
    if rebuild is not None and not all(hasattr(layer, "reset_parameters") for layer in layers):
        dtype = next(iter(cohort.params.values())).dtype
        anew = [rebuild(seed=stream("fresh_start", seed, name)) for name in cohort.ids]
        return Cohort.from_modules(anew, cohort.ids).to(dtype=dtype)
    modules = []
    with torch.random.fork_rng(devices=[]):
        for name in cohort.ids:
            torch.manual_seed(stream("fresh_start", seed, name))
            module = copy.deepcopy(cohort.module)
            for path, layer in module.named_modules():
                reset = getattr(layer, "reset_parameters", None)
                if callable(reset):
                    reset()
                elif list(layer.parameters(recurse=False)):
                    raise MeasureError(
                        f"cannot start {type(layer).__name__} {path!r} afresh: it has parameters but no "
                        "reset_parameters(); add that method to the layer."
                    )
            modules.append(module)
    dtype = next(iter(cohort.params.values())).dtype
    return Cohort.from_modules(modules, cohort.ids).to(dtype=dtype)


def _finite_rows(cohort: Cohort) -> Tensor:
    """Which models have finite weights and buffers, (n,) bool."""
    finite = torch.ones(len(cohort), dtype=torch.bool)
    for tensor in [*cohort.params.values(), *cohort.buffers.values()]:
        finite &= tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else tensor.isfinite()
    return finite
