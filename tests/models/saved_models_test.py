"""Models and weights in files."""

import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest

from mp_loop.config import errors
from mp_loop.models import catalog, saved_models
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


@pytest.mark.parametrize(
    "kind",
    [pytest.param(".keras", marks=pytest.mark.slow), ".weights.h5", "whole .keras"],
)
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


def test_a_file_of_another_size_is_compared_at_its_own(tmp_path):
    """Padding that depends on the size of the image is no other model."""
    path = str(tmp_path / "odd.keras")
    odd = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(33, 33, 3)
    )
    odd.save(path)
    model = catalog.build("MobileNetV2", (32, 32, 3), 5, weights=path)
    np.testing.assert_array_equal(model.weights[0], odd.weights[0])


def test_weights_of_a_model_that_computes_something_else_are_refused(tmp_path):
    path = str(tmp_path / "cnn.keras")
    config = catalog.build("cnn", (8, 8, 3), 5).get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "BatchNormalization":
            layer["config"]["epsilon"] = 1e-5
    keras.Model.from_config(config).save(path)
    with pytest.raises(errors.ModelError) as error:
        catalog.build("cnn", (8, 8, 3), 5, weights=path)
    said = str(error.value)
    assert "computes something else than 'cnn': epsilon of" in said
    assert f"is 1e-05, not 0.001. --model={path} trains" in said


@pytest.fixture(scope="module")
def dense():
    return keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )


def change(path, dtype, value):
    """Gives the kernel in a file of weights another dtype and value."""
    with h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        (name,) = [name for name in names if name.endswith("dense/vars/0")]
        shape = file[name].shape
        del file[name]
        if value is None:  # large, and nothing in the file
            file.create_dataset(name, (2**26, 4), dtype, compression="gzip")
        else:
            file[name] = np.full(shape, value, dtype)


BAD_ARRAYS = {
    "nan": (("float32", np.nan), "kernel holds NaN or inf"),
    "inf": (("float32", -np.inf), "kernel holds NaN or inf"),
    "complex": (("complex64", 1j), "dense/vars/0 holds complex64 numbers"),
    "text": (("S3", b"abc"), r"dense/vars/0 holds \|S3 numbers"),
    "a bomb": (("float32", None), "must not unpack to more than 100 times"),
}


@pytest.mark.parametrize("kind", [".weights.h5", ".keras"])
@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_no_model_can_use_are_refused(name, kind, dense, tmp_path):
    changes, said = BAD_ARRAYS[name]
    weights = tmp_path / "file.weights.h5"
    dense.save_weights(weights)
    change(weights, *changes)
    with pytest.raises(errors.ModelError, match=said):
        if kind == ".weights.h5":
            saved_models.load_weights(str(weights), dense)
        else:
            dense.save(tmp_path / "file.keras")
            with (
                zipfile.ZipFile(tmp_path / "file.keras") as whole,
                zipfile.ZipFile(tmp_path / "changed.keras", "w") as changed,
            ):
                changed.writestr("config.json", whole.read("config.json"))
                changed.writestr("metadata.json", whole.read("metadata.json"))
                changed.write(weights, "model.weights.h5")
            saved_models.load(str(tmp_path / "changed.keras"))


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(2**26 + 1))
    with pytest.raises(errors.ModelError, match="more than 100 times its size"):
        saved_models.load(str(path))
