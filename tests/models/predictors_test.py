"""From raw inputs to names and probabilities."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import masks, resizing, targets
from mp_loop.models import applications, predictors
from tests.support import data_sets

# Keras 3.10 says so of every loaded model that has one input.
pytestmark = pytest.mark.filterwarnings("ignore:The structure of `inputs`")
MODES = ["dataset", "tf", "torch", "caffe", "none"]
SHAPES = {"tall": (50, 41), "flat": (20, 90), "small": (9, 9), "as held": (12, 12)}


def classifier(shape, classes, activation=None, name="cls"):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, activation=activation),
        ],
        name=name,
    )


def source_of(mode="dataset", resized_to=0, classes=4, names=None):
    """Images of 8 x 8 pixels, of the middle of 12 x 12 where they are resized."""
    side = resized_to or 8
    made = data_sets.source(classes, (side, side, 3))
    return dataclasses.replace(
        made,
        input_shape=(8, 8, 3),
        mean=np.array([0.4, 0.5, 0.6]),
        std=np.array([0.2, 0.3, 0.25]),
        preprocess=applications.preprocessing(mode, "cnn", ""),
        resized_to=resized_to,
        class_names=names or made.class_names,
    )


def pixels(shape, count=3):
    generator = np.random.default_rng(1)
    return generator.integers(0, 256, (count, *shape, 3), np.uint8)


def again(model, tmp_path):
    model.save(tmp_path / "predictor.keras")
    return keras.models.load_model(tmp_path / "predictor.keras")


@pytest.mark.parametrize("mode", MODES)
def test_raw_images_become_the_inputs_of_the_training_bit_for_bit(tmp_path, mode):
    source = source_of(mode, resized_to=12)
    model = classifier((8, 8, 3), 4)
    predictor = again(predictors.make(source, model), tmp_path)
    for shape in SHAPES.values():
        raw = pixels(shape)
        inputs = source.prepare(tf.constant(resizing.resized(raw, 12)))
        wanted = tf.nn.softmax(model(inputs)).numpy()
        found = predictor(raw)
        np.testing.assert_array_equal(found["probability"], wanted)
        best = [str(i).encode() for i in wanted.argmax(-1)]
        assert found["class"].numpy().tolist() == best
        # In a graph TensorFlow divides by multiplying with the inverse.
        found = predictor.predict(raw, verbose=0)
        np.testing.assert_allclose(found["probability"], wanted, rtol=2e-5)


def test_images_that_were_not_resized_have_their_size(tmp_path):
    source = source_of()
    model = classifier((8, 8, 3), 4)
    predictor = again(predictors.make(source, model), tmp_path)
    assert predictor.inputs[0].shape == (None, 8, 8, 3)
    wanted = tf.nn.softmax(model(source.prepare(source.test.inputs)))
    np.testing.assert_array_equal(predictor(source.test.inputs)["probability"], wanted)


def test_a_model_that_ends_in_softmax_gets_no_other():
    source = source_of()
    model = classifier((8, 8, 3), 4, activation="softmax")
    found = predictors.make(source, model)(source.test.inputs)["probability"]
    np.testing.assert_array_equal(found, model(source.prepare(source.test.inputs)))


@pytest.mark.parametrize(
    "names", [("a/b", "[UNK]"), ("ä", "a b"), (" a", "a"), ("1", "0"), ("nan", "inf")]
)
def test_any_names_of_classes_are_kept(tmp_path, names):
    model = classifier((8, 8, 3), 2)
    made = predictors.make(source_of(classes=2, names=names), model)
    predictor = again(again(made, tmp_path), tmp_path)
    assert predictors.class_names(predictor) == names
    found = predictor(pixels((8, 8), 20))
    wanted = [names[i].encode() for i in found["probability"].numpy().argmax(-1)]
    assert found["class"].numpy().tolist() == wanted


def test_tokens_are_the_input_of_a_text_classifier(tmp_path):
    source = dataclasses.replace(source_of(), input_shape=(5,), kind="text")
    ids = keras.Input((5,), dtype="int32")
    outputs = keras.layers.Dense(4)(keras.layers.Embedding(9, 3)(ids)[:, 0])
    model = keras.Model(ids, outputs)
    predictor = again(predictors.make(source, model), tmp_path)
    tokens = np.arange(5)[None] + np.arange(3)[:, None]
    wanted = tf.nn.softmax(model(tokens))
    np.testing.assert_array_equal(predictor(tokens)["probability"], wanted)


def test_a_model_that_cannot_be_combined_is_named():
    with pytest.raises(errors.ModelError, match="'image' cannot be part of another"):
        predictors.make(source_of(), classifier((8, 8, 3), 4, name="image"))


def test_targets_are_predicted_in_the_units_of_the_data(tmp_path):
    of = targets.Targets(("a", "b"), np.array([1.7e9, 0.0]), np.array([50.0, 1e-3]))
    source = dataclasses.replace(
        source_of(resized_to=12), num_classes=2, class_names=(), targets=of
    )
    model = classifier((8, 8, 3), 2)
    predictor = again(predictors.make(source, model), tmp_path)
    assert predictors.class_names(predictor) == ()
    images = pixels((12, 12))
    found = predictor.predict(images, verbose=0)
    outputs = model.predict(source.prepare(images), verbose=0).astype(np.float64)
    assert [*found] == ["prediction"] and found["prediction"].dtype == np.float64
    back = (found["prediction"] - of.mean) / of.std
    np.testing.assert_allclose(back, outputs, rtol=0, atol=1e-5)
    # As for TensorFlow Lite, which has no float64: of squares, which nothing resizes.
    alone = predictors.of_squares(predictors.numbers_alone(predictor))
    small = alone.predict(images, verbose=0)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, found["prediction"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_several_labels_are_named_where_they_are_more_probable_than_not(
    tmp_path, activation
):
    names = ("a", "[UNK]", "b c", "0")
    source = dataclasses.replace(source_of(names=names), task="multilabel")
    model = classifier((8, 8, 3), 4, activation)
    predictor = again(again(predictors.make(source, model), tmp_path), tmp_path)
    assert predictors.class_names(predictor) == names
    images = pixels((8, 8), 20)
    outputs = model(source.prepare(images))
    wanted = outputs if activation else keras.ops.sigmoid(outputs)
    found = predictor(images)
    np.testing.assert_allclose(found["probability"], wanted, rtol=1e-6)
    right = found["probability"].numpy() >= 0.5
    assert right.any(axis=0).all() and not right.all()
    spelled = np.where(right, [name.encode() for name in names], b"")
    np.testing.assert_array_equal(found["class"].numpy().astype("S"), spelled)


def test_masks_have_the_numbers_of_the_users(tmp_path):
    source = dataclasses.replace(
        source_of(resized_to=12, classes=3),
        task="segmentation",
        masks=masks.Masks((0, 7, 255), (1.0, 1.0)),
    )
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, padding="same")]
    model = keras.Sequential(layers)
    predictor = again(again(predictors.make(source, model), tmp_path), tmp_path)
    assert predictors.class_names(predictor) == ()
    assert predictors.mask_values(predictor) == (0, 7, 255)
    images = pixels((20, 12))
    found = predictor.predict(images, verbose=0)
    inputs = source.prepare(tf.constant(resizing.resized(images, 12)))
    wanted = np.array([0, 7, 255], np.uint8)[np.argmax(model(inputs), -1)]
    assert found["mask"].dtype == np.uint8 and len(np.unique(wanted)) == 3
    np.testing.assert_array_equal(found["mask"], wanted)
    assert found["probability"].shape == (3, 8, 8, 3)
