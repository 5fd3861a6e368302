import polars as pl
import pytest

import zoarium as za
from zoarium import Estimates
from zoarium._core.errors import MeasureError
from zoarium.measure import MEASURES, measure
from zoarium.measure.driver import defaults_of, quantity_of, resolve
from zoarium.measure.plan import plan_measure


@pytest.fixture
def counted():
    """A measure that remembers which models it was called with."""
    calls = []

    @measure("counted_norm", scope="model", needs_data=False)
    def counted_norm(cohort, data, *, power=2.0):
        """Norm of the weights."""
        calls.append(cohort.ids)
        return Estimates(cohort.flat.norm(p=power, dim=1).numpy())

    yield calls
    del MEASURES._methods["counted_norm"]


def test_every_model_gets_one_value_with_its_settings(small_zoo, counted):
    assert small_zoo.measure("counted_norm", workers=1) is small_zoo
    values = small_zoo.values("counted_norm")
    assert sorted(values["id"]) == sorted(small_zoo.ids)
    for cohort in (ref.load() for ref in small_zoo.cohorts()):
        for i, norm in zip(cohort.ids, cohort.flat.norm(dim=1), strict=True):
            assert values.filter(id=i)["value"].item() == pytest.approx(float(norm))
    (digest,) = values["settings"].unique()
    assert small_zoo.info["measure_settings"][digest] == {"measure": "counted_norm", "power": 2.0}
    assert (values["seconds"] >= 0).all()


def test_what_is_stored_is_not_computed_again_unless_settings_differ(small_zoo, counted):
    small_zoo.measure("counted_norm", workers=1)
    first = len(counted)
    za.open(small_zoo.path).measure("counted_norm", workers=1)
    assert len(counted) == first
    small_zoo.measure("counted_norm", workers=1, power=1.0)
    assert len(counted) > first
    assert len(small_zoo.values("counted_norm")) == len(small_zoo)


def test_one_worker_and_two_store_the_same_values(small_zoo, tmp_path):
    other = small_zoo.save(tmp_path / "other")
    names = ("performance", "hessian_trace", "cka", "linear_barrier", "seed_averaging")
    small_zoo.measure(*names, workers=1)
    other.measure(*names, workers=2)
    for quantity in ("test_loss", "hessian_trace", "cka", "linear_barrier", "plain_averaging_delta"):
        keys = [c for c in ("id", "a", "b", "cell") if c in small_zoo.values(quantity).columns]
        a = small_zoo.values(quantity).sort(keys)
        b = other.values(quantity).sort(keys)
        assert a.drop("seconds").equals(b.drop("seconds"), null_equal=True)


def test_an_interrupted_run_keeps_what_was_finished_and_resumes(small_zoo, counted, monkeypatch):
    def interrupt(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_zoo.measure("counted_norm", workers=1, on_progress=interrupt)
    kept = len(small_zoo.values("counted_norm"))
    assert 0 < kept < len(small_zoo)
    before = len(counted)
    small_zoo.measure("counted_norm", workers=1)
    again = {i for ids in counted[before:] for i in ids}
    assert len(again) == len(small_zoo) - kept
    assert len(small_zoo.values("counted_norm")) == len(small_zoo)


def test_pairs_of_a_cell_all_pairs_and_given_pairs(small_zoo):
    small_zoo.measure("weight_distance")
    assert len(small_zoo.values("l2_distance")) == 4  # four cells of two seeds
    small_zoo.measure("weight_distance", pairs="all")
    assert len(small_zoo.values("l2_distance")) == 2 * 6  # two architectures of four models
    small_zoo.measure("cka", pairs="all")
    assert len(small_zoo.values("cka")) == 8 * 7 // 2
    a, b = small_zoo.cells()["ids"][0]
    fresh = small_zoo[[a, b]]
    fresh.measure("disagreement", pairs=[(b, a)])
    assert fresh.values("disagreement").select("a", "b").rows() == [(b, a)]


def test_pairs_that_cannot_be_compared_are_named(small_zoo):
    narrow = small_zoo.where(width=2).ids[0]
    wide = small_zoo.where(width=4).ids[0]
    with pytest.raises(MeasureError, match="compares models of one architecture"):
        small_zoo.measure("weight_distance", pairs=[(narrow, wide)])
    with pytest.raises(MeasureError, match="'nobody' is not a trained model"):
        small_zoo.measure("cka", pairs=[(narrow, "nobody")])
    with pytest.raises(MeasureError, match=r"unknown choice of pairs 'cells'\. Did you mean 'cell'"):
        small_zoo.measure("cka", pairs="cells")


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (("hesian_trace",), {}, r"unknown measure 'hesian_trace'\. Did you mean 'hessian_trace'"),
        (("cka",), {"sampels": 3}, r"unknown setting of cka 'sampels'\. Did you mean 'samples'"),
        (({"cka": {"smples": 3}},), {}, r"unknown setting of measure 'cka' 'smples'"),
        ((), {}, "no measure named; choose from"),
    ],
)
def test_a_bad_name_or_setting_lists_what_there_is(names, settings, message):
    with pytest.raises(MeasureError, match=message):
        resolve(names, settings)


def test_a_quantity_stands_for_its_measure():
    assert quantity_of("test_accuracy").name == "performance"
    assert "samples" in defaults_of(MEASURES["hessian_trace"])


def test_a_measure_that_returns_too_few_values_is_named(small_zoo):
    @measure("short", scope="model", needs_data=False)
    def short(cohort, data):
        return Estimates([1.0])

    try:
        with pytest.raises(MeasureError, match=r"measure 'short' returned 1 values of 'short' for \d+ models"):
            small_zoo.measure("short", workers=1)
    finally:
        del MEASURES._methods["short"]


def test_a_small_budget_cuts_more_tasks_that_still_cover_every_model(small_zoo):
    method = MEASURES["hessian_trace"]
    many = plan_measure(small_zoo, method, defaults_of(method), "cell", 1)
    few = plan_measure(small_zoo, method, defaults_of(method), "cell", 10**9)
    assert len(many) == len(small_zoo) > len(few)
    for tasks in (many, few):
        assert sorted(i for task in tasks for i in task.ids) == sorted(small_zoo.ids)


def test_cells_stay_whole_whatever_the_budget(small_zoo):
    method = MEASURES["mode_connectivity"]
    tasks = plan_measure(small_zoo, method, defaults_of(method), "cell", 1)
    cells = {frozenset(ids) for ids in small_zoo.cells()["ids"].to_list()}
    assert {frozenset(block.ids) for task in tasks for block in task.blocks} == cells


def test_a_diverged_model_has_no_values_and_disturbs_nobody(tmp_path):
    zoo = za.grow(za.Grid(width=4, lr=[0.05, 1e30], clip_norm=None, epochs=1), tmp_path / "z", workers=1)
    assert sorted(zoo.table["status"]) == ["diverged", "trained"]
    zoo.measure("performance", "hessian_trace", workers=1)
    good = zoo.where(status="trained").ids
    assert zoo.values("hessian_trace")["id"].to_list() == good
    assert zoo.values("test_loss").filter(pl.col("id").is_in(good))["value"].is_finite().all()
