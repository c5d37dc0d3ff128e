"""The embedded data set, loaded once."""

import pytest

from mp_loop.data import sources


@pytest.fixture(scope="session")
def mini():
    return sources.load("fashion_mnist_mini")
