"""Plans: everybody trains once, within the memory, and the plan does not depend on chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoarium._core.errors import DataError, GridError, NetError
from zoarium.data.dataset import Dataset, Split
from zoarium.train import data_key, plan
from zoarium.train.schedules import rates
from zoarium.train.timetable import Timetable
from zoarium.zoo.config import ModelConfig, Training


def task(count=100):
    x, y = torch.linspace(0, 1, (count + 20) * 8).view(-1, 8), torch.arange(count + 20) % 4
    return Dataset("ramp", Split(x[:count], y[:count]), Split(x[count:], y[count:]), "classification", 4)


def configs_of(widths, batches, seeds=2, **settings):
    return [
        ModelConfig(
            net="mlp", net_params={"width": w}, seed=s, data="ramp", training=Training(batch_size=b, **settings)
        )
        for w in widths
        for b in batches
        for s in range(seeds)
    ]


def planned(configs, dataset=None, **options):
    return plan(configs, {data_key(c): dataset or task() for c in configs}, **options)


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.integers(1, 40), min_size=1, max_size=4),
    st.sets(st.integers(1, 64), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_every_model_is_in_exactly_one_program_and_the_longest_comes_first(widths, batches, seeds, workers):
    configs = configs_of(sorted(widths), sorted(batches), seeds)
    programs = planned(configs, workers=workers)
    assert sorted(row for p in programs for row in p.rows) == list(range(len(configs)))
    costs = [p.cost for p in programs]
    assert costs == sorted(costs, reverse=True)
    assert len({p.key for p in programs}) == len(programs)
    assert programs == planned(configs, workers=workers)


def test_a_key_names_the_models_not_their_places():
    configs = configs_of([4], [8])
    (first,), (second,) = planned(configs), planned(configs[::-1])
    assert first.key == second.key


def test_memory_bounds_every_program():
    budget = 64 << 20
    programs = planned(configs_of([256], [16], seeds=60), memory=2 * budget, workers=2)
    assert len(programs) > 1
    assert all(p.bytes <= budget for p in programs)


def test_a_model_larger_than_the_memory_is_refused_with_a_way_out():
    with pytest.raises(GridError, match="more memory or fewer workers"):
        planned(configs_of([4], [8]), memory=1 << 20)


def test_work_is_shared_between_workers():
    programs = planned(configs_of([32], [16], seeds=40), workers=2)
    assert len(programs) >= 2
    assert programs[0].cost <= 0.6 * sum(p.cost for p in programs)


def test_what_cannot_be_shared_is_kept_apart():
    configs = configs_of([4], [8], 1) + configs_of([4], [8], 1, optimizer="adam") + configs_of([4], [8], 1, epochs=3)
    assert sorted(p.rows for p in planned(configs)) == [(0,), (1,), (2,)]


def test_a_batch_larger_than_the_data_is_refused_and_the_limit_named():
    with pytest.raises(GridError, match=r"batch_size 128 .* 100 training samples of 'ramp'.*at most 100"):
        planned(configs_of([4], [128]))


def test_nan_in_the_data_is_refused_with_the_split_and_the_number_of_rows():
    data = task()
    data.test.x[3, 2] = torch.nan
    with pytest.raises(DataError, match=r"test split of 'ramp' hold NaN or infinity in 1 of 20 rows"):
        planned(configs_of([4], [8]), data)


def test_a_net_whose_outputs_do_not_match_the_labels_is_refused():
    with pytest.raises(NetError, match=r"gives shape \(2, 3\).*need shape \(2, 4\).*n_outputs=4"):
        planned(configs_of([4], [8]), factory=lambda in_shape, n_outputs, width: torch.nn.Linear(8, 3))


def test_a_net_that_cannot_read_the_inputs_is_refused():
    with pytest.raises(NetError, match=r"cannot read inputs of shape \(8,\) from 'ramp'"):
        planned(configs_of([4], [8]), factory=lambda in_shape, n_outputs, width: torch.nn.Linear(5, 4))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(30, 90), st.booleans())
def test_each_model_completes_its_batches_and_uses_each_sample_once(batches, count, drop_last):
    trainings = [Training(batch_size=b, drop_last=drop_last) for b in sorted(batches)]
    timetable = Timetable.of(trainings, count)
    for i, training in enumerate(trainings):
        done = timetable.samples[:, i]
        whole, rest = divmod(count, training.batch_size)
        wanted = [training.batch_size] * whole + [rest] * (rest > 0 and not drop_last)
        assert done[done > 0].tolist() == wanted
    for m, slices in enumerate(timetable.due):
        stepping = [i for a, b in slices for i in range(a, b)]
        assert stepping == np.flatnonzero(timetable.samples[m]).tolist()


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(1, 60))
def test_one_cycle_is_torchs(warmup, steps):
    if warmup * steps == 1:
        return  # torch divides by zero
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps, pct_start=warmup, cycle_momentum=False)
    wanted = []
    for step in range(steps):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    assert rates(Training(lr=0.1, warmup=warmup), steps).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
