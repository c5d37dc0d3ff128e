"""The script that makes the embedded data set."""

import pytest

from mp_loop.datasets import make_fashion_mnist_mini


def test_first_of_each_class_keeps_the_order_and_needs_enough():
    stored = [{"label": k, "at": i} for i, k in enumerate([1, 1, 0, 1, 0, 0])]
    chosen = make_fashion_mnist_mini.first_of_each_class(iter(stored), 2, 2)
    assert [example["at"] for example in chosen] == [0, 1, 2, 4]
    with pytest.raises(ValueError, match="Fewer than 4"):
        list(make_fashion_mnist_mini.first_of_each_class(iter(stored), 2, 4))
