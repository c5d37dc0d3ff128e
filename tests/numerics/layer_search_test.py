"""The search finds the layers that are hidden, with few measurements."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mp_loop.numerics import layer_search

NAMES = tuple("abcdefghij")


@given(st.sets(st.sampled_from(NAMES), max_size=3))
def test_hidden_layers_are_found(hidden):
    found = layer_search.fewest_layers(NAMES, lambda names: hidden <= set(names))
    assert set(found.names) == hidden
    # Up to two layers of ten, all smaller sets are tried.
    assert found.fewest or len(hidden) > 2


@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=4), min_size=1))
def test_no_layer_of_the_answer_can_be_left_out(ways):
    def is_enough(names):
        return any(way <= set(names) for way in ways)

    found = layer_search.fewest_layers(NAMES, is_enough)
    assert is_enough(found.names)
    for name in found.names:
        assert not is_enough(tuple(n for n in found.names if n != name))
    if found.fewest:
        assert len(found.names) == min(map(len, ways))


def test_the_smaller_of_two_ways_is_found():
    ways = ({"a", "b"}, {"j"})
    found = layer_search.fewest_layers(
        NAMES, lambda names: any(w <= set(names) for w in ways)
    )
    assert found == layer_search.LayerSet(("j",), True)


def test_what_cannot_be_helped_is_not():
    assert layer_search.fewest_layers(NAMES, lambda names: False) is None


def test_few_measurements_find_one_layer_of_many():
    names, tried = tuple(map(str, range(100))), []

    def is_enough(chosen):
        tried.append(chosen)
        return "77" in chosen

    assert layer_search.fewest_layers(names, is_enough).names == ("77",)
    assert len(tried) < 20


@pytest.mark.parametrize("name", ["dense", "a.b", "x(1)", "a|b"])
def test_the_regular_expression_finds_these_layers_alone(name):
    pattern = layer_search.regex([name, "other"])
    assert re.search(pattern, name) and re.search(pattern, "other")
    assert not re.search(pattern, f"{name}_1") and not re.search(pattern, "o")
    assert layer_search.regex([]) == ""
