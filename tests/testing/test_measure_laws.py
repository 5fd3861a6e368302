from __future__ import annotations

from functools import cache

import pytest

from zoarium.measure.registry import MEASURES
from zoarium.testing import MEASURE_LAWS, LawViolationError, Subject, subject_of

# What makes slow measures fast; everything else is checked at its defaults.
SETTINGS = {
    "mode_connectivity": {"epochs": 2},
    "fine_tuning": {"epochs": 1},
}


@cache
def subject(name: str) -> Subject:
    return subject_of(name, settings=SETTINGS.get(name))


@pytest.mark.parametrize("law", MEASURE_LAWS)
@pytest.mark.parametrize("name", list(MEASURES))
def test_every_measure(name, law):
    try:
        MEASURE_LAWS[law](subject(name))
    except LawViolationError as error:
        pytest.fail(f"{name} {law}: {error}")
