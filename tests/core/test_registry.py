import pytest

from zoarium._core.errors import MeasureError, unknown_name
from zoarium._core.registry import Registry


def test_an_unknown_name_lists_the_known_ones_and_guesses():
    registry = Registry("dish", error=MeasureError)
    registry.register("soup", reference="Grandmother 1950")(lambda: 1)
    registry.register("salad")(lambda: 2)
    with pytest.raises(MeasureError, match=r"unknown dish 'soupp'\. Did you mean 'soup'\? Known: salad, soup\."):
        registry["soupp"]


def test_unknown_name_survives_an_empty_registry():
    assert unknown_name("net", 3, []).endswith("Known: none.")


def test_a_name_is_taken_once_across_modules():
    registry = Registry("dish")

    def other():
        return 1

    other.__module__ = "elsewhere"
    registry.register("soup")(other)
    with pytest.raises(Exception, match="already registered by elsewhere"):
        registry.register("soup")(lambda: 2)


def test_methods_keep_reference_facts_and_summary():
    registry = Registry("dish")

    @registry.register("soup", reference="G 1950", hot=True)
    def soup():
        """Boil water.

        Then add salt.
        """
        return 42

    method = registry["soup"]
    assert (method(), method.reference, method.facts["hot"], method.summary) == (42, "G 1950", True, "Boil water.")
    assert list(registry) == ["soup"]
    assert len(registry) == 1
    assert "soup" in registry


def test_modules_are_loaded_at_first_use_only():
    registry = Registry("dish", modules=("no.such.module",))
    registry.register("soup")(lambda: 1)
    assert registry["soup"]() == 1
    with pytest.raises(ModuleNotFoundError):
        registry["salad"]
