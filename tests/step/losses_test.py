"""Losses are those of `compile`: by name, by output, and of the same shapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import mp_loop
from mp_loop.step import loss_names, losses

LABELS = np.array([0, 2])
LOGITS = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
WANTED = -np.log(PROBABILITIES[[0, 1], LABELS])


def squares(labels, outputs):
    return ops.mean(ops.square(labels - outputs), axis=-1)


def weightless_squares(labels, outputs):
    return tf.reduce_mean((outputs - labels) ** 2)


LOSSES = {
    "binary_crossentropy": "binary_crossentropy",
    "mse": "mse",
    "hinge": "hinge",
    "poisson": "poisson",
    "binary_focal_crossentropy": "binary_focal_crossentropy",
    "a function of Keras": keras.losses.mean_absolute_error,
    "an object of Keras": keras.losses.BinaryCrossentropy(label_smoothing=0.1),
    "a function": squares,
    "a function that returns a mean": weightless_squares,
}
GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.uniform(0.1, 0.9, (6, 1)).astype(np.float32)
WEIGHTS = np.linspace(0, 2, 6).astype(np.float32)


def given_to_compile(loss, labels, outputs, sample_weight=None, **arguments):
    """The loss of outputs, by a model of Keras that passes them on."""
    if isinstance(outputs, dict):
        inputs = {k: keras.Input(v.shape[1:], name=k) for k, v in outputs.items()}
        made = {k: keras.layers.Identity()(x) for k, x in inputs.items()}
    else:
        inputs = keras.Input(outputs.shape[1:])
        made = keras.layers.Identity()(inputs)
    model = keras.Model(inputs, made)
    model.compile(loss=loss, **arguments)
    found = model.test_on_batch(outputs, labels, sample_weight, return_dict=True)
    return found["loss"]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_a_vector_fit_outputs_of_one_column(name, dtype, weights):
    labels = np.array([0, 1, 1, 0, 1, 0], dtype)
    ours = losses.of(LOSSES[name])(labels, tf.constant(SCORES), weights)
    theirs = given_to_compile(LOSSES[name], labels, SCORES, weights)
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)  # two units in the last place
    columns = losses.of(LOSSES[name])(labels[:, None], tf.constant(SCORES), weights)
    np.testing.assert_array_equal(ours, columns)
    vector = losses.of(LOSSES[name])(labels[:, None], tf.constant(SCORES[:, 0]))
    np.testing.assert_array_equal(vector, losses.of(LOSSES[name])(labels, SCORES))


MISFITS = {
    "class numbers": ((10,), (10, 10)),
    "one column of many": ((4, 1), (4, 10)),
    "another length": ((4, 3), (4, 2)),
}


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()])
@pytest.mark.parametrize("name", MISFITS)
def test_labels_that_would_be_broadcast_are_refused(name, loss):
    ours, theirs = MISFITS[name]
    with pytest.raises(ValueError) as error:
        losses.of(loss)(np.zeros(ours), tf.zeros(theirs))
    assert f"labels of shape {ours}" in str(error.value)
    assert f"outputs of shape {theirs}" in str(error.value)


def test_class_numbers_fit_losses_that_take_them():
    loss = losses.of(keras.losses.SparseCategoricalCrossentropy())
    np.testing.assert_allclose(loss(LABELS, PROBABILITIES), WANTED.mean(), rtol=1e-5)


SPARSE = {
    "an object": keras.losses.SparseCategoricalCrossentropy(),
    "a function": loss_names.make("sparse_categorical_crossentropy", True),
    "by output": {"kind": "sparse_categorical_crossentropy", "size": "mse"},
    "one ignored": keras.losses.SparseCategoricalCrossentropy(ignore_class=255),
}


@pytest.mark.parametrize("name", SPARSE)
def test_labels_must_be_class_numbers(name):
    def check(numbers):
        labels, outputs = tf.constant(numbers), tf.zeros((3, 4))
        if name == "by output":
            labels = {"kind": labels, "size": tf.zeros((3, 1))}
            outputs = {"kind": outputs, "size": tf.zeros((3, 1))}
        return losses.check_classes(losses.of(SPARSE[name]), labels, outputs)

    assert check([0, 3, 1]) == []  # an operation only while a graph is traced
    for numbers in ([0, 4, 1], [-1, 0, 1], [255, 0, 0]):
        if name == "one ignored" and 255 in numbers:
            assert check(numbers) == []
            continue
        with pytest.raises(tf.errors.InvalidArgumentError, match="from 0 to 3"):
            check(numbers)
    assert losses.check_classes(losses.of(squares), tf.constant([9]), SCORES) == []


def test_a_function_gets_integers_as_they_are():
    """As float32, 2^24 + 1 would be 2^24; and nothing is looked up by a float."""
    large = np.array([2**24 + 1, 2**24])

    def odd(labels, outputs):
        return tf.cast(labels % 2, tf.float32) * outputs

    assert float(losses.of(odd)(large, tf.ones(2))) == 0.5
    table = tf.constant([3.0, 5.0, 7.0])

    def looked_up(labels, outputs):
        return tf.gather(table, labels) - outputs

    assert float(losses.of(looked_up)(LABELS, tf.zeros(2))) == 5.0


def test_masks_of_keras_are_heeded():
    outputs = tf.constant([[[1.0], [9.0]], [[3.0], [5.0]]])
    outputs._keras_mask = tf.constant([[True, False], [True, True]])
    for loss in ("mae", lambda labels, outputs: ops.mean(abs(outputs - labels), -1)):
        found = losses.of(loss)(np.zeros((2, 2, 1)), outputs)
        assert float(found) == 3.0
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=2)
    found = losses.of(ignoring)(LABELS, PROBABILITIES)
    np.testing.assert_allclose(found, WANTED[0], rtol=1e-5)


BY_OUTPUT = {
    "names": ({"price": "mse", "kind": "sparse_categorical_crossentropy"}, None),
    "one of two": ({"price": squares}, None),
    "weights": (
        {"price": keras.losses.MeanAbsoluteError(), "kind": "categorical_hinge"},
        {"price": 0.5, "kind": 2.0},
    ),
    "one for all": ("mse", None),
}


@pytest.mark.parametrize("name", BY_OUTPUT)
def test_a_loss_of_each_output(name):
    loss, factors = BY_OUTPUT[name]
    outputs = {"price": SCORES[:2], "kind": PROBABILITIES}
    kinds = LABELS if name == "names" else np.eye(3, dtype=np.float32)[LABELS]
    labels = {"price": np.array([1.0, 2.0], np.float32), "kind": kinds}
    ours = losses.of(loss, factors)(labels, outputs)
    theirs = given_to_compile(loss, labels, outputs, loss_weights=factors)
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)
    keys = ["price", "kind"]
    lists = [[x[key] for key in keys] for x in (labels, outputs)]
    np.testing.assert_array_equal(losses.of(loss, factors, keys)(*lists), ours)


WRONG = {
    "an output that is not there": ({"size": "mse"}, None, r"`loss` \(size\)"),
    "a weight too many": ("mse", [1.0, 2.0, 3.0], r"`loss_weights` \(3 items\)"),
    "weights of another": ("mse", {"size": 1.0}, r"`loss_weights` \(size\).*price"),
}


@pytest.mark.parametrize("name", WRONG)
def test_losses_that_do_not_fit_the_outputs_are_refused(name):
    loss, factors, said = WRONG[name]
    outputs = {"price": tf.zeros((2, 1)), "kind": tf.zeros((2, 1))}
    with pytest.raises(ValueError, match=said):
        losses.of(loss, factors)(outputs, outputs)


@pytest.mark.parametrize("loss", ["absent", 3])
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(ValueError, match=str(loss)):
        losses.of(loss)


def test_the_step_takes_what_compile_takes():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    layers = [keras.layers.Dense(1, name="price"), keras.layers.Dense(3, name="kind")]
    model = keras.Model(inputs, {layer.name: layer(inputs) for layer in layers})
    loss = {"price": squares, "kind": keras.losses.CategoricalHinge()}
    factors = {"price": 0.5, "kind": 2.0}
    labels = {"price": LABELS, "kind": PROBABILITIES}
    step = mp_loop.TrainStep(
        model, keras.optimizers.SGD(0.0), loss, "float32", loss_weights=factors
    )
    theirs = given_to_compile(
        loss, labels, model.predict(LOGITS, verbose=0), loss_weights=factors
    )
    found = step(LOGITS, labels)["loss"]
    np.testing.assert_allclose(found, theirs, rtol=1e-6)
