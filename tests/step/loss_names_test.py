"""Losses by name are told what the model's outputs are."""

import keras
import numpy as np
import pytest

from mp_loop.step import loss_names

LABELS = np.array([0, 2])
FLAGS = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
LOGITS = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
WANTED = -np.log(PROBABILITIES[[0, 1], LABELS])
ODDS = 1 / (1 + np.exp(-LOGITS))
BINARY = -np.mean(FLAGS * np.log(ODDS) + (1 - FLAGS) * np.log(1 - ODDS), axis=-1)


@pytest.mark.parametrize(
    "name", ["sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"]
)
@pytest.mark.parametrize(
    ("outputs", "from_logits"), [(LOGITS, True), (PROBABILITIES, False)]
)
def test_a_crossentropy_is_told_whether_it_gets_logits(name, outputs, from_logits):
    loss = loss_names.make(name, from_logits)
    np.testing.assert_allclose(np.mean(loss(LABELS, outputs)), WANTED.mean(), 1e-5)


@pytest.mark.parametrize("name", ["binary_crossentropy", "bce", "BinaryCrossentropy"])
def test_that_of_several_labels_is_told_too(name):
    for outputs, from_logits in ((LOGITS, True), (ODDS, False)):
        loss = loss_names.make(name, from_logits)
        np.testing.assert_allclose(np.mean(loss(FLAGS, outputs)), BINARY.mean(), 1e-5)


def test_several_labels_are_smoothed_as_keras_does_it():
    loss = loss_names.make("binary_crossentropy", True, label_smoothing=0.1)
    wanted = keras.losses.binary_crossentropy(0.9 * FLAGS + 0.05, LOGITS, True)
    np.testing.assert_allclose(loss(FLAGS, LOGITS), wanted, 1e-6)


def test_other_losses_are_keras_own():
    loss = loss_names.make("mean_squared_error", True)
    assert float(loss(np.ones(3), np.zeros(3))) == 1.0


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="absent"):
        loss_names.make("absent", True)
