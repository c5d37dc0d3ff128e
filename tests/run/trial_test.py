"""Losses and metrics that do not fit the labels are refused."""

import dataclasses

import keras
import numpy as np
import pytest

from mp_loop.config import errors, sections
from mp_loop.data import decoding, sources, targets
from mp_loop.run import trial
from mp_loop.step import loss_names


@pytest.fixture(scope="module")
def parts():
    source = sources.load("fashion_mnist_mini")
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    return source, model


def checked(parts, loss="sparse_categorical_crossentropy", name="accuracy"):
    source, model = parts
    trial.check(
        sections.Model(loss=loss, metric=name), model, keras.losses.get(loss), source
    )


REFUSED = {
    "labels that are no vectors": (
        {"loss": "categorical_crossentropy"},
        r"--loss \(categorical_crossentropy\) does not fit labels \(3,\) and outputs "
        r"\(3, 10\): .* --loss=sparse_categorical_crossentropy\.",
    ),
    "mse": ({"loss": "mse"}, r"--loss \(mse\) does not fit labels"),
    "hinge": ({"loss": "hinge"}, r"--loss \(hinge\) does not fit labels"),
    "an error": ({"name": "mse"}, r"--metric \(mse\) does not fit .* class numbers"),
    "f1 of one-hot labels": ({"name": "f1_score"}, r"as for accuracy, auc and"),
    "a mean of outputs": ({"name": "mean"}, r"--metric \(mean\) does not fit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_class_numbers_is_refused(parts, name):
    values, said = REFUSED[name]
    with pytest.raises(errors.UsageError, match=said) as error:
        checked(parts, **values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["accuracy", "ce", "SparseTopKCategoricalAccuracy", "auc"]
)
def test_what_fits_passes(parts, name):
    checked(parts, name=name)


@pytest.fixture(scope="module")
def of_targets():
    labels = np.random.default_rng(0).normal(1e6, 1e3, (9, 2))
    split = decoding.Split(np.random.default_rng(1).normal(size=(9, 3)), labels)
    source = sources.Source(
        name="made",
        train=split,
        test=split,
        num_classes=2,
        input_shape=(3,),
        class_names=(),
        mean=np.zeros(3),
        std=np.ones(3),
        kind="row",
        targets=targets.Targets.of(labels, ("a", "b")),
    )
    return source, keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "log_cosh"])
def test_a_loss_of_the_difference_fits_targets(of_targets, loss):
    checked(of_targets, loss, "r2_score")


NOT_OF_TARGETS = {
    "of a ratio": ({"loss": "mape"}, r"--loss \(mape\) .* of the difference alone"),
    "of a count": ({"loss": "poisson"}, r"--loss \(poisson\) does not fit labels"),
    "of classes": (
        {"name": "accuracy"},
        r"--metric \(accuracy\) .* as for mean_absolute_error and r2_score",
    ),
    "of nothing": ({"name": "mean"}, r"--metric \(mean\) does not fit"),
}


@pytest.mark.parametrize("name", NOT_OF_TARGETS)
def test_what_does_not_fit_targets_is_refused(of_targets, name):
    values, said = NOT_OF_TARGETS[name]
    with pytest.raises(errors.UsageError, match=said) as error:
        checked(of_targets, **{"loss": "mse", "name": "mae", **values})
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def of_several():
    labels = np.random.default_rng(0).integers(0, 2, (9, 4), np.uint8)
    split = decoding.Split(np.random.default_rng(1).normal(size=(9, 3)), labels)
    source = sources.Source(
        name="made",
        train=split,
        test=split,
        num_classes=4,
        input_shape=(3,),
        class_names=("a", "b", "c", "d"),
        mean=np.zeros(3),
        std=np.ones(3),
        kind="row",
        task="multilabel",
    )
    return source, keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])


@pytest.mark.parametrize("loss", ["binary_crossentropy", "binary_focal_crossentropy"])
def test_a_loss_of_each_class_fits_several_labels(of_several, loss):
    source, model = of_several
    made = loss_names.make(loss, from_logits=True)
    named = sections.Model(loss=loss, metric="auc", task="multilabel")
    trial.check(named, model, made, source)


NOT_OF_SEVERAL = {
    "of one class": (
        {"loss": "categorical_crossentropy"},
        r"--loss \(categorical_crossentropy\) .* of each for itself",
    ),
    "of class numbers": (
        {"loss": "sparse_categorical_crossentropy"},
        r"--loss .* does not fit labels \(3, 4\) and outputs \(3, 4\)",
    ),
    "of a difference": ({"loss": "mse"}, r"--loss \(mse\) .* of each for itself"),
    "of the right ones": ({"loss": "kl_divergence"}, "of each for itself"),
    "of their sum": ({"loss": "categorical_hinge"}, "of each for itself"),
    "the most probable": (
        {"name": "categorical_accuracy"},
        r"--metric \(categorical_accuracy\) .* as for auc",
    ),
}


@pytest.mark.parametrize("name", NOT_OF_SEVERAL)
def test_what_does_not_fit_several_labels_is_refused(of_several, name):
    values, said = NOT_OF_SEVERAL[name]
    values = {"loss": "binary_crossentropy", "name": "auc", **values}
    source, model = of_several
    made = loss_names.make(values["loss"], from_logits=True)
    named = sections.Model(
        loss=values["loss"], metric=values["name"], task="multilabel"
    )
    with pytest.raises(errors.UsageError, match=said) as error:
        trial.check(named, model, made, source)
    assert "\n" not in str(error.value)


def test_a_metric_that_a_step_cannot_trace_is_refused(parts):
    @keras.saving.register_keras_serializable("test_trial")
    def in_numpy(labels, outputs):
        return np.asarray(outputs)[:, 0]

    with pytest.raises(errors.UsageError, match=r"--metric \(test_trial>in_numpy\)"):
        checked(parts, name="test_trial>in_numpy")


def test_five_guesses_of_five_classes_are_refused(parts):
    source, _ = parts
    small = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(5)]
    )
    keep = source.test.labels < 5
    few = decoding.Split(source.test.inputs[keep], source.test.labels[keep])
    source = dataclasses.replace(source, test=few, num_classes=5)
    with pytest.raises(errors.UsageError, match="of 5 classes one of 5 is always"):
        checked((source, small), name="sparse_top_k_categorical_accuracy")
