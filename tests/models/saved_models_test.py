"""Models and weights in files."""

import shutil

import keras
import numpy as np
import pytest

from mp_loop.config import errors
from mp_loop.models import catalog
from tests.support import models


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "m.keras"
    path.write_text("not a zip")
    with pytest.raises(errors.ModelError, match="is not a .keras file"):
        catalog.build(str(path), (2, 2, 1), 3)
    keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten()]).save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"config.json", b"konfig.json"))
    with pytest.raises(errors.ModelError, match="cannot be loaded") as error:
        catalog.build(str(path), (2, 2, 1), 3)
    assert "\n" not in str(error.value)


def test_a_file_that_brings_code_is_refused(tmp_path):
    path = str(tmp_path / "m.keras")
    keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            keras.layers.Lambda(lambda x: x * 2),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    ).save(path)
    with pytest.raises(errors.ModelError, match="cannot be loaded"):
        catalog.build(path, (2, 2, 1), 3)


@pytest.mark.parametrize("kind", [".keras", ".weights.h5", "whole .keras"])
def test_weights_of_an_architecture_come_from_a_file(kind, tmp_path):
    keras.utils.set_random_seed(9)
    top = kind == "whole .keras"
    original = keras.applications.MobileNetV2(
        include_top=top, weights=None, input_shape=(32, 32, 3), alpha=1.0
    )
    path = str(tmp_path / f"file{kind.removeprefix('whole ')}")
    original.save_weights(path) if kind == ".weights.h5" else original.save(path)
    model = catalog.build("mobilenetv2", (32, 32, 3), 5, seed=1, weights=path)
    count = len(model.weights) - 2
    for ours, theirs in zip(model.weights[:count], original.weights, strict=False):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    other = catalog.build("mobilenetv2", (32, 32, 3), 5, seed=2, weights=path)
    assert not np.array_equal(model.weights[-2], other.weights[-2])  # the head


def test_weights_of_a_whole_model_come_from_a_file(tmp_path):
    path = str(tmp_path / "cnn.keras")
    original = catalog.build("cnn", (8, 8, 3), 5, seed=3)
    original.save(path)
    model = catalog.build("cnn", (8, 8, 3), 5, seed=4, weights=path)
    models.assert_same_weights(model, original)


@pytest.mark.parametrize(
    ("name", "weights", "law"),
    [
        ("cnn", "imagenet", "needs an architecture of keras.applications"),
        ("cnn", "absent.keras", "there is no such file"),
        ("cnn", "cnn.txt", "must be imagenet, or end in .keras or .weights.h5"),
        ("cnn", "broken.weights.h5", "cannot be loaded"),
        ("cnn", "features.keras", "are of another model than 'cnn'"),
        ("features.keras", "features.keras", "has its own"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    name, weights, law, backbone, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for file in ("cnn.txt", "broken.weights.h5"):
        (tmp_path / file).write_text("no weights")
    shutil.copy(backbone[1], tmp_path / "features.keras")
    with pytest.raises(errors.ModelError, match=law) as error:
        catalog.build(name, (8, 8, 3), 5, weights=weights)
    assert "\n" not in str(error.value) and "`weights` (" in str(error.value)
