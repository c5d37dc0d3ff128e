"""Sizes are numbers where they are known."""

import pytest
import tensorflow as tf

from mp_loop.operations import shapes


def test_unknown_sizes_are_read_from_the_tensor():
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def read(x):
        first, second = shapes.sizes(x)
        assert second == 3
        return first

    assert read(tf.zeros([5, 3])).numpy() == 5


def test_of_known_sizes_a_graph_computes_nothing():
    @tf.function(input_signature=[tf.TensorSpec([2, 3])])
    def read(x):
        assert shapes.sizes(x) == [2, 3]
        return x

    types = {op.type for op in read.get_concrete_function().graph.get_operations()}
    assert "Shape" not in types


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ([2, 3], [2, 3]),
        ([None, 3], [-1, 3]),
        ([None, None], None),
        ([None, 0], None),
    ],
    ids=["known", "one unknown", "two unknown", "no numbers"],
)
def test_one_unknown_size_is_left_to_the_reshape(sizes, found):
    assert shapes.constant(sizes) == found
