"""What a step tells of its batch beside the loss, as Keras' metrics measure it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.step import batch_metrics, keras_step
from tests.support import steps

GENERATOR = np.random.default_rng(0)
OUTPUTS = GENERATOR.normal(size=(6, 4)).astype(np.float32)
CLASSES = GENERATOR.integers(0, 4, 6)
WEIGHTS = np.array([1, 0, 2, 1, 1, 0.5], np.float32)


def own_error(labels, outputs):
    return tf.abs(tf.cast(labels, tf.float32) - outputs[:, 0])


def value(given, labels=CLASSES, outputs=OUTPUTS, weights=None):
    measure = batch_metrics.BatchMetrics(given, None)
    (found,) = measure(tf.constant(labels), tf.constant(outputs), weights).values()
    return float(found)


@pytest.mark.parametrize(
    ("labels", "outputs", "function"),
    [
        (CLASSES, OUTPUTS, keras.metrics.sparse_categorical_accuracy),
        (CLASSES[:, None], OUTPUTS, keras.metrics.sparse_categorical_accuracy),
        (np.eye(4)[CLASSES], OUTPUTS, keras.metrics.categorical_accuracy),
        (CLASSES[:, None] % 2, OUTPUTS[:, :1], keras.metrics.binary_accuracy),
    ],
)
def test_accuracy_is_the_one_that_compile_would_take(labels, outputs, function):
    assert value("accuracy", labels, outputs) == pytest.approx(
        np.mean(function(labels, outputs))
    )


@pytest.mark.parametrize(
    "name", ["sparse_top_k_categorical_accuracy", "SparseCategoricalCrossentropy"]
)
def test_any_metric_of_keras_weighs_the_rows_as_keras_does(name):
    outputs = tf.nn.softmax(OUTPUTS).numpy()
    metric = keras.metrics.get(name)
    if not isinstance(metric, keras.metrics.Metric):
        metric = keras.metrics.MeanMetricWrapper(metric)
    metric.update_state(CLASSES, outputs, sample_weight=WEIGHTS)
    assert value(name, outputs=outputs, weights=WEIGHTS) == float(metric.result())


def test_every_batch_begins_anew_and_the_object_keeps_nothing():
    metric = keras.metrics.AUC()
    labels, outputs = CLASSES % 2, tf.sigmoid(OUTPUTS[:, 0]).numpy()
    values = {value(metric, labels, outputs) for _ in range(2)}
    assert not np.any(metric.true_positives)
    metric.update_state(labels, outputs)
    assert values == {float(metric.result())}


def test_names_are_those_of_the_metrics_after_those_of_the_outputs():
    given = ["accuracy", own_error, keras.metrics.MeanSquaredError(name="mse")]
    assert batch_metrics.BatchMetrics(given, ["a"]).names == [
        "accuracy",
        "own_error",
        "mse",
    ]
    by_output = {"b": ["accuracy", "mse"], "a": None}
    measure = batch_metrics.BatchMetrics(by_output, ["a", "b"])
    assert measure.names == ["b_accuracy", "b_mean_squared_error"]
    labels, outputs = (CLASSES, CLASSES), (OUTPUTS, OUTPUTS)
    found = batch_metrics.BatchMetrics({"b": "accuracy"}, ["a", "b"])(labels, outputs)
    assert float(found["b_accuracy"]) == value("accuracy")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["accuracy", "accuracy"], "'accuracy' is the name of another value"),
        (keras.metrics.Mean(name="loss_scale"), "'loss_scale' is the name"),
        ("acuracy", "acuracy"),
    ],
)
def test_unknown_and_ambiguous_metrics_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        batch_metrics.BatchMetrics(given, None)


def test_metrics_of_an_output_that_there_is_not_are_refused():
    measure = batch_metrics.BatchMetrics({"c": "accuracy"}, ["a", "b"])
    with pytest.raises(ValueError, match="`metrics` .c. must be for outputs"):
        measure((CLASSES, CLASSES), (OUTPUTS, OUTPUTS))


def test_a_metric_of_many_numbers_is_refused():
    metric = keras.metrics.F1Score(name="f1")
    with pytest.raises(ValueError, match="f1 must be one number"):
        value(metric, np.eye(4, dtype=np.float32)[CLASSES])


def test_a_step_tells_of_the_outputs_before_its_update():
    step = steps.make("bfloat16", metrics="accuracy")
    inputs, labels = steps.data()
    twin = step.twin(inputs, training=True)  # the same masks: a seed of its own
    step = steps.make("bfloat16", metrics="accuracy")
    found = step(inputs, labels)
    assert float(found["accuracy"]) == value("accuracy", labels, twin)


@pytest.mark.parametrize("accumulate_steps", [3, 4])
def test_micro_batches_count_by_their_rows(accumulate_steps):
    """16 rows; in three parts of 6, 6 and 4, or in equal ones."""
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(4))
    arguments = {"model": model, "metrics": ["accuracy"], "optimizer": "sgd"}
    batch = steps.data()
    first = model.get_weights()
    whole = steps.make("float32", **arguments)(*batch)
    model.set_weights(first)
    parts = steps.make("float32", **arguments, accumulate_steps=accumulate_steps)
    found = parts(*batch)
    assert float(found["accuracy"]) == pytest.approx(float(whole["accuracy"]))
    assert float(found["loss"]) == pytest.approx(float(whole["loss"]))


def test_many_steps_return_what_single_ones_do_in_both_loops():
    for make in (mp_loop.TrainStep, keras_step.KerasStep):
        found = []
        for many in (True, False):
            sgd = keras.optimizers.SGD(0.05)
            step = make(
                steps.conv_model(), sgd, steps.loss(), "float32", metrics=["accuracy"]
            )
            batches = iter(steps.batches(0, 0))
            if many:
                found.append(step.run(batches, 4)["accuracy"].numpy())
            else:
                found.append([float(step(*x)["accuracy"]) for x in batches])
        np.testing.assert_array_equal(*found)
