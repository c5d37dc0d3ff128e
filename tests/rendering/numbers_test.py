"""Numbers in few characters, and the spread of several."""

import math

import pytest

from mp_loop.rendering import numbers

SHORT = {0.001: "0.001", 9999: "9999", 12345: "12.35k", 2e7: "20M", -3e9: "-3G"}


@pytest.mark.parametrize("value", SHORT)
def test_short_numbers(value):
    assert numbers.short(value) == SHORT[value]


def test_loss_scales_are_powers_of_two_where_they_are():
    assert numbers.power_of_two(2.0**15) == "2^15"
    assert numbers.power_of_two(2.0**-3) == "2^-3"
    assert numbers.power_of_two(1000.0) == "1000"
    assert numbers.power_of_two(0.0) == "0"
    assert numbers.power_of_two(math.inf) == "inf"


SPREADS = [
    pytest.param([1.0, 4.0, 2.0], (2.0, 1.0, 4.0), "2.00 (1.00 to 4.00)", id="three"),
    pytest.param([1.0], (1.0, 1.0, 1.0), "1.00", id="one"),
    pytest.param([1.001, 1.0], (1.0005, 1.0, 1.001), "1.00", id="they look equal"),
]


@pytest.mark.parametrize(("values", "expected", "text"), SPREADS)
def test_a_spread(values, expected, text):
    spread = numbers.spread(values)
    assert (spread["median"], spread["min"], spread["max"]) == expected
    assert numbers.spread_text(spread, "{:.2f}".format) == text


def test_the_spread_of_what_is_no_number_is_no_number():
    spread = numbers.spread([1.0, math.nan, 2.0])
    assert all(map(math.isnan, spread.values()))
    assert numbers.spread_text(spread, "{:g}".format) == "nan"


DURATIONS = {
    0.0: "0 s", 4.25: "4.25 s", 59.9: "59.9 s", 60: "1:00 min", 185.4: "3:05 min",
    7385: "2:03:05 h", math.inf: "inf s", math.nan: "nan s",
}  # fmt: skip


@pytest.mark.parametrize("seconds", DURATIONS)
def test_durations(seconds):
    assert numbers.duration(seconds) == DURATIONS[seconds]
