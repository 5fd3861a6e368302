"""Study 01: a population over load and temperature has phases, and what a model is good for depends on its phase.

126 digit classifiers a zoo (width x batch size x 3 seeds) are grown on clean labels and on labels of which 10 % are
wrong, and judged on fresh zoo seeds; zoo seed s stands for model seeds 3s, 3s+1, 3s+2 and for data seed s.

"A model zoo on phase transitions in neural networks", 2025; phases after Yang et al., "Taxonomizing local versus
global structure in neural network loss landscapes", 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

import zoarium as za
from zoarium._core.statistics import partial_spearman, spearman
from zoarium.evaluate import effects_by_phase
from zoarium.measure.phases.map import label_contiguity
from zoarium.studies.registry import Budget, Findings, Progress, study
from zoarium.studies.result import Check

ARMS = {"clean": 0.0, "noisy": 0.1}  # share of wrong training labels
WIDTHS, BATCHES = (2, 4, 8, 16, 32, 64, 128), (8, 16, 32, 64, 128, 256)
EPOCHS = 30
CURVE = {"epochs": 40}
SMALL = {"width": (2, 8, 32, 64), "batch_size": (8, 32, 128), "epochs": 6}  # for budget="small"
LABELS = ("I", "II", "III", "IV-A", "IV-B")
PERMUTATIONS = 1000

# Frozen: calibrated on prototypes and on zoo seed 0.
RHO_A, RHO_B, SHARE_C = 0.6, -0.6, 0.8
GAP_III, GAP_I = 2.0, 6.0  # points of aligned averaging that IV-B is ahead
CELLS_E = 3  # cells a label must have to count
CONFIDENT = 0.6  # share of resampled seeds that agree with a label


@study(
    "01",
    title="Phases of a population tell what its models are good for",
    claim="Over a grid of width and batch size, cells fall into contiguous phases; similarity of seeds (CKA) predicts "
    "how little weight averaging after alignment costs and ensembling gains, and both depend on the phase.",
    data="digits 8x8 (1,000 train, 797 test); one-hidden-layer ReLU MLPs, widths 2 to 128 x batch sizes 8 to 256 x 3 "
    "seeds = 126 models a zoo, 30 epochs of SGD; a clean arm and one with 10 % wrong training labels.",
    baseline="The phase-agnostic mean over all cells; train loss alone as predictor; plain averaging without "
    "alignment; phase labels dealt to cells at random.",
    falsifier="A (clean) or B misses its threshold in any zoo seed, D reverses, or E fails.",
    seeds=(1, 2, 3),
    thresholds=(
        f"A clean: Spearman(CKA, aligned averaging delta) >= {RHO_A}",
        f"B clean and noisy: Spearman(CKA, ensembling gain) <= {RHO_B}",
        f"C clean and noisy: aligned beats plain averaging in >= {SHARE_C:.0%} of cells",
        f"D clean: aligned averaging delta of IV-B minus III >= {GAP_III}, minus I >= {GAP_I} points",
        f"E clean: >= 4 phases of >= {CELLS_E} cells, I, III and IV-B among them; neighbours agree more often than in "
        "99 % of label permutations",
    ),
    reference="A Model Zoo on Phase Transitions in Neural Networks, arXiv 2504.18072, DMLR 2025",
)
def phase_zoo(seeds: Sequence[int], *, budget: Budget, workers: int | None, progress: Progress) -> Findings:
    """Grow, measure and label a zoo for every seed and arm, then judge claims A to E."""
    tables: list[pl.DataFrame] = []
    numbers: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    runs = [(arm, seed) for seed in seeds for arm in ARMS]
    for index, (arm, seed) in enumerate(runs):
        note = f"zoo seed {seed}, {arm} labels"
        zoo = _measured_zoo(arm, seed, budget, workers, lambda part: progress(index + part, len(runs), note))  # noqa: B023
        cells = cell_table(zoo)
        numbers[arm][seed] = statistics(cells, seed)
        tables.append(cells.with_columns(arm=pl.lit(arm), zoo_seed=pl.lit(seed)))
        progress(index + 1, len(runs), note)
    cells = pl.concat(tables, how="diagonal")
    effects = pl.concat([_by_phase(part, str(arm)) for (arm,), part in cells.group_by("arm", maintain_order=True)])
    return Findings(
        tables={"cells": cells, "effects_by_phase": effects},
        checks=checks(numbers),
        figures=figures(cells, effects),
    )


def _measured_zoo(arm: str, seed: int, budget: Budget, workers: int | None, report: Callable[[float], None]) -> Any:
    axes = {"width": WIDTHS, "batch_size": BATCHES, "epochs": EPOCHS} if budget == "full" else SMALL
    grid = za.Grid(
        net="mlp", data="digits", label_noise=ARMS[arm], data_seed=seed, seed=range(3 * seed, 3 * seed + 3), **axes
    )
    zoo = za.grow(grid, workers=workers, on_progress=lambda done, total, note: report(0.4 * done / max(total, 1)))
    curve = CURVE if budget == "full" else {"epochs": 3}
    return zoo.measure(
        "performance", "hessian_trace", "hessian_top_eigenvalue", {"mode_connectivity": curve}, "cka",
        "seed_averaging", "ensembling", workers=workers,
        on_progress=lambda name, done, total: report(0.4 + 0.6 * done / max(total, 1)),
    )  # fmt: skip


def cell_table(zoo: Any) -> pl.DataFrame:
    """One row a cell: its place in the grid, its phase, and the mean of every quantity over its models or pairs."""
    members = zoo.cells().select("cell", pl.col("ids").alias("id")).explode("id")
    # The rule's own label, as the claim was made: "ambiguous" is a verdict on its confidence, which is reported.
    table = zoo.phases().select(
        "cell", "width", "batch_size", pl.col("point_phase").fill_null("ambiguous").alias("phase"), "confidence"
    )
    for quantity in QUANTITIES:
        values = zoo.values(quantity)
        if "cell" not in values.columns:
            key = "id" if "id" in values.columns else "a"
            values = values.join(members, left_on=key, right_on="id")
        mean = values.filter(pl.col("value").is_finite()).group_by("cell").agg(pl.col("value").mean().alias(quantity))
        table = table.join(mean, on="cell", how="left")
    return table


QUANTITIES = (
    "train_loss", "test_accuracy", "hessian_trace", "hessian_top_eigenvalue", "mode_connectivity",
    "mode_connectivity_test", "cka", "plain_averaging_delta", "aligned_averaging_delta", "ensembling_gain",
)  # fmt: skip


EFFECTS = {
    "plain_averaging_delta": "averaging", "aligned_averaging_delta": "aligned averaging",
    "ensembling_gain": "ensembling",
}  # fmt: skip


def statistics(cells: pl.DataFrame, seed: int) -> dict[str, float]:
    """The numbers of one zoo that the claims speak of; collapsed cells count in the map only."""
    live = cells.filter(pl.col("phase") != "collapsed").drop_nulls(["cka", "aligned_averaging_delta"])
    column = {name: live[name].to_numpy() for name in QUANTITIES}
    aligned, cka = column["aligned_averaging_delta"], column["cka"]
    mean = {label: _mean(live.filter(pl.col("phase") == label)["aligned_averaging_delta"]) for label in LABELS}
    counts = dict(cells.group_by("phase").len().iter_rows())
    enough = [label for label in LABELS if counts.get(label, 0) >= CELLS_E]
    map_ = label_contiguity(cells, "width", "batch_size", permutations=PERMUTATIONS, seed=seed)
    return {
        "A": spearman(cka, aligned).value,
        "A_loss": spearman(column["train_loss"], aligned).value,
        "A_given_loss": partial_spearman(cka, aligned, column["train_loss"]).value,
        "A_loss_given_cka": partial_spearman(column["train_loss"], aligned, cka).value,
        "B": spearman(cka, column["ensembling_gain"]).value,
        "B_loss": spearman(column["train_loss"], column["ensembling_gain"]).value,
        "C": float(np.mean(aligned > column["plain_averaging_delta"])),
        "C_plain": float(column["plain_averaging_delta"].mean()),
        "C_aligned": float(aligned.mean()),
        "D_III": mean["IV-B"] - mean["III"],
        "D_I": mean["IV-B"] - mean["I"],
        "D_all": mean["IV-B"] - float(aligned.mean()),
        "E_labels": float(len(enough) if {"I", "III", "IV-B"} <= set(enough) else 0),
        "E_rate": map_.rate,
        "E_ahead": map_.rate - map_.chance_99,
        "labels": float(sum(counts.get(label, 0) > 0 for label in LABELS)),
        "III": float(counts.get("III", 0)),
        "IV-A": float(counts.get("IV-A", 0)),
        "unsure": float((live["confidence"] < CONFIDENT).mean()),  # type: ignore[arg-type]
        "mc": spearman(column["mode_connectivity"], aligned).value,
        "mc_test": spearman(column["mode_connectivity_test"], aligned).value,
        "top": spearman(column["hessian_top_eigenvalue"], aligned).value,
        "trace": spearman(column["hessian_trace"], aligned).value,
        "accuracy": spearman(column["test_accuracy"], aligned).value,
    }


def checks(numbers: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[Check]:
    """Claims A to E with their thresholds, and what is only reported."""

    def of(arm: str, key: str) -> dict[int, float]:
        return {seed: found[key] for seed, found in numbers[arm].items()}

    def mean(arm: str, key: str) -> float:
        return float(np.mean(list(of(arm, key).values())))

    judged = [
        Check("A clean: rho(CKA, aligned averaging delta)", of("clean", "A"), RHO_A, ">=",
              mean("clean", "A_loss"), "train loss alone",
              "in pilots train loss alone predicted the delta as well as CKA: compare the partial correlations below"),
        *(Check(f"B {arm}: rho(CKA, ensembling gain)", of(arm, "B"), RHO_B, "<=",
                mean(arm, "B_loss"), "train loss alone") for arm in ARMS),
        *(Check(f"C {arm}: share of cells where aligned beats plain averaging", of(arm, "C"), SHARE_C, ">=",
                0.5, "no difference",
                f"mean delta {mean(arm, 'C_plain'):.1f} plain, {mean(arm, 'C_aligned'):.1f} points aligned")
          for arm in ARMS),
        Check("D clean: aligned delta of IV-B minus III, points", of("clean", "D_III"), GAP_III, ">=",
              mean("clean", "D_all"), "IV-B minus all cells",
              f"rests on few cells of III: {', '.join(f'{n:.0f}' for n in of('clean', 'III').values())} by seed"),
        Check("D clean: aligned delta of IV-B minus I, points", of("clean", "D_I"), GAP_I, ">=",
              mean("clean", "D_all"), "IV-B minus all cells"),
        Check("E clean: phases with 3 cells or more", of("clean", "E_labels"), 4.0, ">=",
              note="0 where I, III or IV-B is not among them"),
        Check("E clean: neighbours that agree, above the 99th percentile of permutations", of("clean", "E_ahead"), 0.0,
              ">", note=f"neighbouring cells share a label in {mean('clean', 'E_rate'):.0%} of cases; collapsed is a "
              "label here"),
    ]  # fmt: skip
    falsified = {
        seed: float(
            not (clean["A"] >= RHO_A and clean["B"] <= RHO_B and numbers["noisy"][seed]["B"] <= RHO_B)
            or not min(clean["D_III"], clean["D_I"]) >= 0
            or not (clean["E_labels"] >= 4 and clean["E_ahead"] > 0)
        )
        for seed, clean in numbers["clean"].items()
    }
    told = [
        Check("falsified: A clean or B missed, D reversed, or E failed (1 = yes)", falsified),
        Check("A noisy: rho(CKA, aligned averaging delta)", of("noisy", "A"), None, baseline=mean("noisy", "A_loss"),
              baseline_name="train loss alone", note="the source claims A for clean labels only"),
        *(Check(f"{arm}: partial rho(CKA, aligned delta | train loss)", of(arm, "A_given_loss"),
                baseline=mean(arm, "A_loss_given_cka"), baseline_name="train loss given CKA") for arm in ARMS),
        *(Check(f"{arm}: rho(mode connectivity, aligned delta)", of(arm, "mc"),
                baseline=mean(arm, "mc_test"), baseline_name="on the test split",
                note="in pilots it predicted little by itself, 0.14 to 0.32 on clean labels") for arm in ARMS),
        *(Check(f"{arm}: rho(test accuracy, aligned delta)", of(arm, "accuracy")) for arm in ARMS),
        *(Check(f"{arm}: rho(largest Hessian eigenvalue, aligned delta)", of(arm, "top")) for arm in ARMS),
        *(Check(f"{arm}: rho(Hessian trace, aligned delta)", of(arm, "trace"),
                note="in pilots negative on clean and positive on noisy labels, so that no threshold of flatness "
                "transfers") for arm in ARMS),
        *(Check(f"{arm}: phases of five that occur", of(arm, "labels"),
                note=f"IV-A has {mean(arm, 'IV-A'):.1f} cells on average; in {mean(arm, 'unsure'):.0%} of the cells "
                "fewer than 60 % of resamples of the seeds agree with the label")
          for arm in ARMS),
    ]  # fmt: skip
    return [*judged, *told]


def _by_phase(cells: pl.DataFrame, arm: str) -> pl.DataFrame:
    """Effects per phase over all zoo seeds of an arm; a cell of each zoo counts."""
    named = cells.with_columns(cell=pl.format("{}/{}", "zoo_seed", "cell"))
    long = named.unpivot(
        on=["plain_averaging_delta", "aligned_averaging_delta", "ensembling_gain"],
        index="cell",
        variable_name="quantity",
    )
    return effects_by_phase(long, named.select("cell", "phase")).select(pl.lit(arm).alias("arm"), pl.all())


def _mean(values: pl.Series) -> float:
    return float(values.to_numpy().mean()) if len(values) else float("nan")


def figures(cells: pl.DataFrame, effects: pl.DataFrame) -> dict[str, Any]:
    """Phase maps, CKA against what averaging costs, and effects per phase."""
    import altair as alt

    from zoarium.report.style import PHASES

    present = [name for name in PHASES if name in set(cells["phase"])]
    palette = alt.Scale(domain=present, range=[PHASES[name].colour for name in present])
    colour = alt.Color("phase:N", scale=palette, title="phase")
    marks = {name: style.mark for name, style in PHASES.items()}
    box = alt.Chart().encode(x=alt.X("width:O", title="width (small = high load)"),
                             y=alt.Y("batch_size:O", title="batch size (small = hot)"))  # fmt: skip
    maps = alt.layer(
        box.mark_rect(stroke="white").encode(color=colour), box.mark_text(fontSize=8).encode(text="mark:N"),
        data=cells.select("width", "batch_size", "phase", "arm", "zoo_seed", mark=pl.col("phase").replace(marks)),
    ).properties(width=190, height=150).facet(column=alt.Column("zoo_seed:N", title="zoo seed"),
                                              row=alt.Row("arm:N", title="labels"))  # fmt: skip
    live = cells.filter(pl.col("phase") != "collapsed")
    cost = (
        alt.Chart(live.select("cka", "aligned_averaging_delta", "phase", "arm"))
        .mark_circle(size=40, opacity=0.8)
        .encode(x=alt.X("cka:Q", title="CKA of logits between seeds"), color=colour,
                y=alt.Y("aligned_averaging_delta:Q", title="aligned averaging delta (points)"))
        .properties(width=280, height=220)
        .facet(column=alt.Column("arm:N", title="labels"))
    )  # fmt: skip
    rows = alt.Chart(effects.with_columns(pl.col("quantity").replace(EFFECTS))).encode(y=alt.Y("phase:N", title=None))
    bars = (
        alt.layer(
            rows.mark_rule().encode(x=alt.X("low:Q", title="points"), x2="high:Q", color=colour),
            rows.mark_point(filled=True, size=60).encode(x="mean:Q", color=colour),
            rows.mark_tick(color="black", thickness=2).encode(x="baseline:Q"),
        )
        .properties(width=170, height=110)
        .facet(column=alt.Column("quantity:N", title="mean and 95 % interval; black: all cells"),
               row=alt.Row("arm:N", title="labels"))
    )  # fmt: skip
    return {"phase_maps": maps, "cka_and_averaging": cost, "effects_by_phase": bars}
