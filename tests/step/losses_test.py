"""Losses by name: told of logits where their name leaves it open."""

import keras
import numpy as np
import pytest

from mp_loop.step import losses

LABELS = np.array([0, 2])
LOGITS = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
WANTED = -np.log(PROBABILITIES[[0, 1], LABELS])


@pytest.mark.parametrize(
    ("outputs", "from_logits"), [(LOGITS, True), (PROBABILITIES, False)]
)
def test_a_crossentropy_is_told_whether_it_gets_logits(outputs, from_logits):
    loss = losses.make("sparse_categorical_crossentropy", from_logits)
    np.testing.assert_allclose(loss(LABELS, outputs), WANTED, rtol=1e-5)


def test_other_losses_are_keras_own():
    loss = losses.make("mean_squared_error", True)
    assert float(loss(np.ones(3), np.zeros(3))) == 1.0


def test_a_loss_object_keeps_its_own_setting():
    loss = losses.make("SparseCategoricalCrossentropy", True)
    assert isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    mean = float(loss(LABELS, PROBABILITIES))
    np.testing.assert_allclose(mean, WANTED.mean(), rtol=1e-5)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="absent"):
        losses.make("absent", True)
