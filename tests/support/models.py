"""What tests of models share."""

import numpy as np


def images(shape, count=2):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def assert_same_weights(a, b):
    assert len(a.weights) == len(b.weights) > 0
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy(), err_msg=x.path)


def same_weights(a, b):
    return all(
        np.array_equal(x.numpy(), y.numpy())
        for x, y in zip(a.weights, b.weights, strict=True)
    )
