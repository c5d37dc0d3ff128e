"""Losses and metrics that do not fit the labels are refused."""

import keras
import pytest

from mp_loop.config import errors, sections
from mp_loop.data import sources
from mp_loop.run import trial


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
    "a mean of outputs": ({"name": "mean"}, r"--metric \(mean\) does not fit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_class_numbers_is_refused(parts, name):
    values, said = REFUSED[name]
    with pytest.raises(errors.UsageError, match=said) as error:
        checked(parts, **values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["accuracy", "ce", "SparseTopKCategoricalAccuracy"])
def test_what_fits_passes(parts, name):
    checked(parts, name=name)
