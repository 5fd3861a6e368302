import contextlib
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from zoarium._core.errors import GridError, ZoariumError
from zoarium.growth.grid import Grid


def test_a_grid_is_the_product_of_its_axes():
    grid = Grid(width=[2, 4], batch_size=(8, 16), seed=range(3), lr=0.1)
    configs = grid.expand()
    assert len(configs) == len(grid) == 12
    assert len({config.id for config in configs}) == 12
    assert {config.net_params["width"] for config in configs} == {2, 4}
    assert all(config.training.lr == 0.1 for config in configs)
    assert (grid.load, grid.temperature, grid.varied) == ("width", "batch_size", ["width", "batch_size", "seed"])


def test_an_id_depends_on_the_configuration_and_not_on_the_grid():
    alone = Grid(width=4).expand()[0].id
    assert alone in {config.id for config in Grid(width=[2, 4], seed=[0, 1])}


def test_a_default_said_aloud_is_the_same_model():
    assert Grid(width=4, depth=1, momentum=0.9).expand()[0].id == Grid(width=4).expand()[0].id


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"widht": [2]}, r"unknown axis of net 'mlp' 'widht'\. Did you mean 'width'\?.*batch_size.*width"),
        ({"lr": [-0.1]}, r"axis 'lr': .*greater than or equal to 0; found -0\.1"),
        ({"batch_size": [0]}, "axis 'batch_size'.*found 0"),
        ({"width": []}, "axis 'width' has no values"),
        ({"width": [2, 2]}, "axis 'width' repeats a value"),
        ({"width": ["wide"]}, "axis 'width' takes int values, found 'wide'"),
        ({"width": [True]}, "axis 'width' takes int values, found True"),
        ({"optimizer": "sdg"}, "axis 'optimizer'.*found 'sdg'"),
        ({"lr": [float("nan")]}, "axis 'lr'"),
        ({"label_noise": 1.5}, "axis 'label_noise'"),
        ({"seed": range(10**12)}, "more than 10,000,000 models"),
        ({"width": range(1, 10**4), "seed": range(10**4)}, "grow it in parts"),
        ({"data": 3}, "data must be a name or a Dataset, found int"),
        ({"load": "height"}, "unknown load axis 'height'"),
        ({"width": [{1}, {2}]}, "plain numbers or text"),
    ],
)
def test_a_bad_axis_is_named_with_what_was_found(axes, message):
    with pytest.raises(GridError, match=message):
        Grid(**axes)


def test_an_unknown_net_lists_the_known_ones():
    with pytest.raises(ZoariumError, match=r"unknown net 'mpl'.*mlp"):
        Grid("mpl")


def test_a_factory_brings_its_own_axes():
    def two_layer(in_shape, n_outputs, *, hidden, bias=True):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, n_outputs))

    grid = Grid(two_layer, hidden=[3, 5])
    assert [config.net_params for config in grid] == [{"bias": True, "hidden": 3}, {"bias": True, "hidden": 5}]
    assert grid.net == "two_layer"
    with pytest.raises(GridError, match="needs a value for hidden"):
        Grid(two_layer)


def test_arrays_are_axes():
    assert Grid(lr=torch.tensor([0.5, 0.25])).axes["lr"] == [0.5, 0.25]


def test_milestones_are_one_value_unless_nested():
    assert len(Grid(step_milestones=(0.3, 0.6))) == 1
    assert len(Grid(step_milestones=[[0.3, 0.6], [0.5]])) == 2


def test_yaml_files_and_ranges(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("net: mlp\nwidth: [2, 4]\nseed: {range: [0, 3]}\n")
    assert len(Grid.from_yaml(path)) == 6
    again = tmp_path / "again.yaml"
    Grid.from_yaml(path).to_yaml(again)
    assert Grid.from_yaml(str(again)) == Grid.from_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width: [2", r"not valid YAML at line"),
        ("- 1\n- 2", "must be a mapping of axis names"),
        ("net: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("net: [mlp, cnn]", "'net' must be a registered name"),
        ("width: {from: 1}", r"\{range: \[start, stop\]\}"),
        ("seed: {range: [0, 3, 0]}", "is not a range"),
        ("seed: {range: [a]}", r"range: \[start, stop\]"),
        ("1: 2", "mapping of axis names"),
    ],
)
def test_a_bad_spec_is_one_sentence(text, message):
    with pytest.raises(GridError, match=message):
        Grid.from_yaml(text)


def test_a_missing_spec_names_the_file(tmp_path):
    with pytest.raises(GridError, match=r"cannot read the grid .*none\.yaml: No such file"):
        Grid.from_yaml(tmp_path / "none.yaml")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
AXES = st.sampled_from(
    ["net", "width", "depth", "activation", "data", "seed", "lr", "batch_size", "load", "epochs", "x"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded machine is no finding
@given(st.dictionaries(AXES, PLAIN, max_size=5))
def test_any_mapping_is_a_grid_or_one_sentence(content):
    sentence = None
    try:
        grid = Grid.from_dict(content)
    except ZoariumError as error:
        sentence = str(error)
    if sentence is not None:
        assert "\n" not in sentence
        return
    assert Grid.from_yaml(grid.to_yaml()) == grid
    if len(grid) < 100:
        assert len({config.id for config in grid}) == len(grid)


@given(st.text(max_size=60))
def test_any_text_is_a_grid_or_one_sentence(text):
    with contextlib.suppress(ZoariumError):
        Grid.from_yaml("net: mlp\n" + text)


def test_parameters_of_the_data_are_axes():
    grid = Grid("pinn_mlp", data="convection_pinn", beta=[1, 30], lr=[0.01, 0.1])
    assert (grid.load, grid.temperature) == ("beta", "lr")
    assert sorted({c.data for c in grid}) == ["convection_pinn", "convection_pinn(beta=30)"]
    assert {c.columns()["beta"] for c in grid} == {1, 30}
    assert Grid.from_yaml(grid.to_yaml()) == grid


def test_a_models_id_is_that_of_its_data_named_in_full():
    (one,) = Grid("pinn_mlp", data="convection_pinn", beta=30)
    (other,) = Grid("pinn_mlp", data="convection_pinn(beta=30)")
    assert one.id == other.id


def test_a_parameter_of_the_net_comes_before_one_of_the_data():
    (one,) = Grid("pinn_mlp", data="convection_pinn", seed=5)
    assert one.seed == 5
    assert one.data == "convection_pinn"


def test_exceptions_change_the_cells_they_name_and_no_others():
    rule = {"when": {"width": 8, "batch_size": [32, 64]}, "set": {"micro_batch": 16}}
    grid = Grid("mlp", width=[4, 8], batch_size=[16, 32, 64], exceptions=[rule])
    changed = {(c.net_params["width"], c.training.batch_size) for c in grid if c.training.micro_batch}
    assert changed == {(8, 32), (8, 64)}
    assert Grid.from_yaml(grid.to_yaml()) == grid


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"when": {"depth": 3}, "set": {"lr": 1.0}}, "axis of this grid in an exception 'depth'"),
        ({"when": {"width": 4}, "set": {"lrr": 1.0}}, "in an exception 'lrr'. Did you mean 'lr'"),
        ({"if": {"width": 4}}, "an exception is {'when': {...}, 'set': {...}}"),
    ],
)
def test_exceptions_that_cannot_hold_are_refused(rule, message):
    with pytest.raises(GridError, match=re.escape(message)):
        Grid("mlp", width=[4, 8], exceptions=[rule])


def test_ids_of_models_from_before_augmentation_stay():
    (config,) = Grid("mlp", width=4)
    assert config.id == "mlp-3b0f4ab277"


def test_a_grid_without_data_is_refused():
    with pytest.raises(GridError, match="axis 'data' has no values"):
        Grid(data=[])
