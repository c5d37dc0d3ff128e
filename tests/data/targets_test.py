"""Targets are standardized for training, and come back in their units."""

import numpy as np
import pytest

from mp_loop.data import targets

LABELS = np.array([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]])


def test_mean_and_deviation_are_those_of_the_training_labels():
    made = targets.Targets.of(LABELS, ("a", "b"))
    np.testing.assert_array_equal(made.mean, [3, 7])
    np.testing.assert_array_equal(made.std, [np.sqrt(8 / 3), 1])  # a constant: 1
    found = np.array(made.standardized(LABELS))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-7)
    np.testing.assert_allclose(found.std(axis=0), [1, 0], rtol=1e-6)
    back = np.array(made.in_units(found))
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, LABELS, rtol=1e-7)


def test_large_targets_that_differ_little_do_not_become_equal():
    """float32 holds times in seconds to 128 seconds."""
    labels = 1.7e9 + np.arange(5.0)[:, np.newaxis]
    made = targets.Targets.of(labels, ("time",))
    found = made.in_units(made.standardized(labels))
    np.testing.assert_allclose(found, labels, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("column", "count", "names"),
    [
        ("price", 1, ("price",)),
        ("price, rent", 2, ("price", "rent")),
        ("label", 3, ("0", "1", "2")),
    ],
    ids=["a column", "two columns", "of an array"],
)
def test_targets_are_named_by_columns_or_numbers(column, count, names):
    assert targets.names_of(column, count) == names
