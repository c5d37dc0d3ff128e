"""Models: names, shapes, dtypes, weights that depend on the seed alone."""

import random
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.models import catalog, heads
from tests.support import models

OWN = [
    ("mlp", (28, 28, 1)),
    ("cnn", (28, 28, 1)),
    ("cnn", (32, 32, 3)),
    ("resnet9", (32, 32, 3)),
    ("resnet8", (32, 32, 3)),
    ("resnet20", (28, 28, 1)),
    ("vit_tiny", (28, 28, 1)),
    ("vit_tiny", (32, 32, 3)),
]


@pytest.mark.parametrize(
    ("name", "shape"), [*OWN, ("MobileNetV2", (32, 32, 3)), ("resnet50", (32, 32, 1))]
)
def test_model_gives_float32_logits(name, shape):
    model = catalog.build(name, shape, 7)
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, 7)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    logits = model(models.images(shape))
    assert logits.dtype == tf.float32
    assert np.all(np.isfinite(logits))
    assert heads.from_logits(model)
    # Probabilities would sum to one.
    assert not np.allclose(np.sum(logits, axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cnn", (28, 28, 1)), ("resnet8", (32, 32, 3)), ("vit_tiny", (28, 28, 1))],
)
def test_model_can_be_cloned_and_saved_safely(name, shape, tmp_path):
    model = catalog.build(name, shape, 5, seed=3)
    x = models.images(shape)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(x), model(x))
    path = str(tmp_path / "m.keras")
    model.save(path)
    loaded = catalog.build(path, shape, 5)
    models.assert_same_weights(loaded, model)
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit_tiny", "MobileNetV2"])
def test_weights_depend_on_the_seed_alone(name):
    shape = (32, 32, 3)
    first = catalog.build(name, shape, 4, seed=11)
    random.seed(5)
    np.random.seed(6)
    tf.random.set_seed(7)
    keras.random.normal((3,))
    keras.layers.Dense(3)(np.zeros((1, 2)))
    models.assert_same_weights(catalog.build(name, shape, 4, seed=11), first)
    assert not models.same_weights(catalog.build(name, shape, 4, seed=12), first)


def with_dropout(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Dense(num_classes, activation="softmax")(x)
    return keras.Model(inputs, x)


def test_dropout_depends_on_the_seed_alone(user_module):
    def masked(seed):
        model = catalog.build("user_models:with_dropout", (2, 2, 1), 3, seed=seed)
        return model(np.ones((8, 2, 2, 1), np.float32), training=True).numpy()

    first = masked(1)
    keras.random.normal((3,))
    np.testing.assert_array_equal(masked(1), first)
    assert np.any(masked(2) != first)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("MobileNetV2", "MobileNetV2"),
        ("mobilenetv2", "MobileNetV2"),
        ("EFFICIENTNETB0", "EfficientNetB0"),
        ("convnexttiny", "ConvNeXtTiny"),
        ("resnet50", "ResNet50"),  # 6n+2, but the well-known one.
        ("ResNet152", "ResNet152"),
        ("resnet101v2", "ResNet101V2"),
        ("vgg16", "VGG16"),
    ],
)
def test_name_means_the_architecture(name, function, monkeypatch):
    class Called(Exception):
        pass

    def architecture(input_shape, weights, classes, classifier_activation, **rest):
        assert (input_shape, weights, classes) == ((64, 64, 3), None, 9)
        assert classifier_activation is None
        raise Called

    monkeypatch.setattr(keras.applications, function, architecture)
    with pytest.raises(Called):
        catalog.build(name, (64, 64, 3), 9)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_models.py").write_text(
        """
import keras
from models_test import with_dropout

CONSTANT = 3

def half(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    return keras.Model(
        inputs, keras.layers.Dense(num_classes, dtype="mixed_float16", name="d")(x))

def nested_half(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, half(input_shape, num_classes)(inputs))

def two_inputs(input_shape, num_classes):
    a, b = keras.Input(input_shape), keras.Input(input_shape)
    x = keras.layers.Flatten()(a + b)
    return keras.Model([a, b], keras.layers.Dense(num_classes)(x))

def other_input(input_shape, num_classes):
    return with_dropout((9, 9, 1), num_classes)

def other_output(input_shape, num_classes):
    return with_dropout(input_shape, num_classes + 1)

def not_a_model(input_shape, num_classes):
    return 3

def unbuilt(input_shape, num_classes):
    return keras.Sequential([keras.layers.Dense(num_classes)])

def fails(input_shape, num_classes):
    raise RuntimeError("the user's own")
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "models_test", sys.modules[__name__])
    yield
    sys.modules.pop("user_models", None)


def test_a_users_function_is_called_and_its_errors_are_its_own(user_module):
    model = catalog.build("user_models:with_dropout", (2, 2, 1), 3)
    assert model.output_shape == (None, 3)
    assert not heads.from_logits(model)
    with pytest.raises(RuntimeError, match="the user's own"):
        catalog.build("user_models:fails", (2, 2, 1), 3)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        (
            "nonsense",
            "must be one of mlp, cnn, resnet9, vit_tiny, resnet.6n.2.*MobileNetV2.*:",
        ),
        ("mobilenetv4", "Did you mean mobilenetv2"),
        ("", "must be one of"),
        ("resnet21", r"6n\+2"),
        ("resnet2", r"6n\+2"),
        ("missing.keras", "there is no such file"),
        ("no_such_module:f", "cannot be found: No module named 'no_such_module'"),
        ("user_models:absent", "cannot be found: .*absent"),
        ("user_models:CONSTANT", "must be a function"),
        (":f", "cannot be found"),
        ("user_models:not_a_model", "must be a functional or built Sequential"),
        ("user_models:unbuilt", "must be a functional or built Sequential"),
        ("user_models:two_inputs", "one input and one output"),
        ("user_models:other_input", r"takes inputs of \(9, 9, 1\).*\(2, 2, 1\)"),
        ("user_models:other_output", r"gives \(4,\).*need \(3,\)"),
        ("user_models:half", "must be float32; layer 'd' is mixed_float16"),
        ("user_models:nested_half", "must be float32; layer 'd' is mixed_float16"),
        ("vgg16", r"'vgg16'\) cannot take images of \(2, 2, 1\): .*32x32"),
    ],
)
def test_bad_name_or_model_is_refused_in_one_line(name, law, user_module):
    with pytest.raises(errors.ModelError, match=law) as error:
        catalog.build(name, (2, 2, 1), 3)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (((28, 28), 3), "`input_shape`"),
        (((0,), 3), "`input_shape`"),
        (((28, 28, 0), 3), "`input_shape`"),
        (((28, None, 1), 3), "`input_shape`"),
        (((28, 28, 1), 0), r"`num_classes` \(0\)"),
        (((28, 28, 1), 3, -1), r"`seed` \(-1\)"),
        (((28, 28, 1), 3, 2**32), r"`seed` \(4294967296\)"),
    ],
)
def test_argument_out_of_range_is_refused(arguments, law):
    with pytest.raises(errors.ModelError, match=law):
        catalog.build("mlp", *arguments)


@pytest.mark.parametrize("shape", [(16, 24, 3), (21, 13, 1)], ids=["even", "odd"])
def test_a_unet_gives_logits_of_each_pixel(shape):
    model = catalog.build("unet", shape, 4, per_pixel=True)
    assert model.output_shape == (None, *shape[:2], 4)
    assert heads.from_logits(model) and model.count_params() < 500_000


def test_a_model_of_whole_images_is_refused_for_pixels():
    said = (
        r"gives \(4,\) for each example; the 4 classes of each pixel need \(8, 8, 4\)"
    )
    with pytest.raises(errors.ModelError, match=said):
        catalog.build("cnn", (8, 8, 3), 4, per_pixel=True)
