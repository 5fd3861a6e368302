import numpy as np
import pytest

from zoarium._core.estimates import Estimates, concatenate


def test_single_numbers_stand_for_every_row():
    values = Estimates([1.0, 2.0], stderr=0.5, samples=10)
    assert values.stderr.tolist() == [0.5, 0.5]
    assert values.samples.tolist() == [10, 10]
    assert values.reason == ("", "")


def test_parts_concatenate_and_slice_back():
    a = Estimates([1.0], 0.1, 3, 4, ["x"])
    b = Estimates([2.0, 3.0], [0.2, 0.3])
    both = concatenate([a, b])
    assert both.value.tolist() == [1, 2, 3]
    assert both.reason == ("x", "", "")
    assert both[1:].value.tolist() == [2, 3]
    assert both[[0]].products.tolist() == [4]


def test_a_reason_for_each_value_or_none():
    with pytest.raises(ValueError, match="2 values but 1 reasons"):
        Estimates([1.0, 2.0], reason=["x"])


def test_it_prints_values_with_their_errors():
    assert str(Estimates([1.0, np.pi], 0.25)) == "[1 ± 0.25, 3.142 ± 0.25]"
    assert str(Estimates(np.zeros(7))).endswith("(7 values)]")
