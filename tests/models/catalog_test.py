"""Models: names, shapes, dtypes, weights that depend on the seed alone."""

import random
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.models import catalog

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


def images(shape, count=2):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def assert_same_weights(a, b):
    assert len(a.weights) == len(b.weights) > 0
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy(), err_msg=x.path)


def same_weights(a, b):
    return all(
        np.array_equal(x.numpy(), y.numpy())
        for x, y in zip(a.weights, b.weights, strict=True)
    )


# Shapes, dtypes, logits.


@pytest.mark.parametrize(
    ("name", "shape"), [*OWN, ("MobileNetV2", (32, 32, 3)), ("resnet50", (32, 32, 1))]
)
def test_model_gives_float32_logits(name, shape):
    model = catalog.build(name, shape, 7)
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, 7)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    logits = model(images(shape))
    assert logits.dtype == tf.float32
    assert np.all(np.isfinite(logits))
    assert catalog.from_logits(model)
    # Probabilities would sum to one.
    assert not np.allclose(np.sum(logits, axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cnn", (28, 28, 1)), ("resnet8", (32, 32, 3)), ("vit_tiny", (28, 28, 1))],
)
def test_model_can_be_cloned_and_saved_safely(name, shape, tmp_path):
    model = catalog.build(name, shape, 5, seed=3)
    x = images(shape)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(x), model(x))
    path = str(tmp_path / "m.keras")
    model.save(path)
    loaded = catalog.build(path, shape, 5)
    assert_same_weights(loaded, model)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_every_weight_of_vit_tiny_gets_a_gradient():
    model = catalog.build("vit_tiny", (28, 28, 1), 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(images((28, 28, 1))) ** 2)
    for weight, grad in zip(
        model.trainable_weights,
        tape.gradient(loss, [w.value for w in model.trainable_weights]),
        strict=True,
    ):
        # A key's bias adds the same to all scores of a query: softmax ignores it.
        if "key/bias" not in weight.path:
            assert np.any(grad != 0), weight.path


def test_position_embedding_tells_positions_apart():
    layer = catalog.PositionEmbedding()
    out = layer(np.zeros((2, 5, 8), np.float32))
    np.testing.assert_array_equal(out[0], layer.embedding.numpy())
    np.testing.assert_array_equal(out[0], out[1])
    assert len(np.unique(out[0], axis=0)) == 5


def test_vit_tiny_knows_where_a_patch_lies():
    model = catalog.build("vit_tiny", (8, 8, 1), 3)
    x = images((8, 8, 1))
    swapped = np.roll(x, 4, axis=1)  # The same four patches at other positions.
    # Without positions the two differ by rounding, some 1e-6.
    assert np.max(np.abs(model(x) - model(swapped))) > 1e-4


def count(depth):
    """Convolutions of resnet{depth}: its depth less the logits, and 2 shortcuts."""
    return depth - 1 + 2


@pytest.mark.parametrize("depth", [8, 14, 20, 32])
def test_resnet_has_the_depth_it_is_named_for(depth):
    model = catalog.build(f"resnet{depth}", (32, 32, 3), 10)
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    assert len(convolutions) == count(depth)
    assert model.layers[-2].input.shape == (None, 8, 8, 64)


# Seeds.


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit_tiny", "MobileNetV2"])
def test_weights_depend_on_the_seed_alone(name):
    shape = (32, 32, 3)
    first = catalog.build(name, shape, 4, seed=11)
    random.seed(5)
    np.random.seed(6)
    tf.random.set_seed(7)
    keras.random.normal((3,))
    keras.layers.Dense(3)(np.zeros((1, 2)))
    assert_same_weights(catalog.build(name, shape, 4, seed=11), first)
    assert not same_weights(catalog.build(name, shape, 4, seed=12), first)


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


# Names.


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


def test_every_architecture_has_a_name_of_its_own():
    names = catalog._applications()
    assert len(names) >= 40
    for known in ("resnet50", "xception", "densenet121", "nasnetmobile"):
        assert known in names
    assert not set(names) & set(catalog._OWN)


def test_architectures_get_normalized_inputs():
    # Either no preprocessing layer, or its division by 255 taken back.
    model = catalog.build("MobileNetV3Small", (32, 32, 3), 4)
    assert not [x for x in model.layers if isinstance(x, keras.layers.Rescaling)]
    model = catalog.build("EfficientNetB0", (32, 32, 3), 4)
    scales = [x.scale for x in model.layers if isinstance(x, keras.layers.Rescaling)]
    assert np.prod(scales) == 1


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
    assert not catalog.from_logits(model)
    with pytest.raises(RuntimeError, match="the user's own"):
        catalog.build("user_models:fails", (2, 2, 1), 3)


# Refusals.


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
    with pytest.raises(catalog.ModelError, match=law) as error:
        catalog.build(name, (2, 2, 1), 3)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (((28, 28), 3), "`input_shape`"),
        (((28, 28, 0), 3), "`input_shape`"),
        (((28, None, 1), 3), "`input_shape`"),
        (((28, 28, 1), 0), r"`num_classes` \(0\)"),
        (((28, 28, 1), 3, -1), r"`seed` \(-1\)"),
        (((28, 28, 1), 3, 2**32), r"`seed` \(4294967296\)"),
    ],
)
def test_argument_out_of_range_is_refused(arguments, law):
    with pytest.raises(catalog.ModelError, match=law):
        catalog.build("mlp", *arguments)


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "m.keras"
    path.write_text("not a zip")
    with pytest.raises(catalog.ModelError, match="is not a .keras file"):
        catalog.build(str(path), (2, 2, 1), 3)
    keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten()]).save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"config.json", b"konfig.json"))
    with pytest.raises(catalog.ModelError, match="cannot be loaded") as error:
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
    with pytest.raises(catalog.ModelError, match="cannot be loaded"):
        catalog.build(path, (2, 2, 1), 3)


# Logits or probabilities.


@pytest.mark.parametrize(
    ("last", "logits"),
    [
        ([keras.layers.Dense(3)], True),
        ([keras.layers.Dense(3, activation="relu")], True),
        ([keras.layers.Dense(3, activation="softmax")], False),
        ([keras.layers.Dense(3, activation="sigmoid")], False),
        ([keras.layers.Dense(3), keras.layers.Softmax()], False),
        ([keras.layers.Dense(3), keras.layers.Activation("softmax")], False),
        (
            [
                keras.layers.Dense(3, activation="softmax"),
                keras.layers.Activation("linear", dtype="float32"),
            ],
            False,
        ),
        (
            [keras.layers.Dense(3, activation="softmax"), keras.layers.Reshape((3,))],
            False,
        ),
        ([keras.layers.Softmax(), keras.layers.Dense(3)], True),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_from_logits_reads_the_last_activation(last, logits, nested):
    inputs = x = keras.Input((4,))
    for layer in last:
        x = type(layer).from_config(layer.get_config())(x)
    model = keras.Model(inputs, x)
    if nested:
        outer = keras.Input((4,))
        model = keras.Model(outer, model(outer))
    assert catalog.from_logits(model) is logits


def test_from_logits_sees_a_softmax_function():
    inputs = keras.Input((4,))
    assert not catalog.from_logits(keras.Model(inputs, keras.ops.softmax(inputs)))


# Transfer.


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A small convolutional network without its top, and the file it is saved in."""
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="stem"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Conv2D(6, 3, name="block"),
        ]
    )
    path = tmp_path_factory.mktemp("backbone") / "features.keras"
    model.save(path)
    return model, str(path)


def test_saved_features_get_a_head_on_their_mean(backbone):
    features, path = backbone
    model = catalog.build(path, (8, 8, 3), 5, dropout=0.5)
    assert model.output_shape == (None, 5)
    x = images((8, 8, 3))
    mean = features(x).numpy().mean((1, 2))
    kernel, bias = (v.numpy() for v in model.layers[-1].weights)
    np.testing.assert_allclose(model(x), mean @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert [layer.rate for layer in model.layers if hasattr(layer, "rate")] == [0.5]


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
    assert_same_weights(model, original)


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
    with pytest.raises(catalog.ModelError, match=law) as error:
        catalog.build(name, (8, 8, 3), 5, weights=weights)
    assert "\n" not in str(error.value) and "`weights` (" in str(error.value)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_freeze_finds_layers_by_name(backbone, nested):
    features = keras.models.clone_model(backbone[0])
    inputs = keras.Input((8, 8, 3))
    outer = keras.Model(inputs, features(inputs)) if nested else features
    model = catalog.with_head(outer, 3)
    catalog.freeze(model, "^stem$|norm")
    assert {v.path.split("/")[-2] for v in model.trainable_weights} == {
        "block",
        "logits",
    }


@pytest.mark.parametrize(
    ("pattern", "law"), [("absent", "finds no layer"), (".", "leaves nothing to train")]
)
def test_freezing_nothing_or_everything_is_refused(pattern, law, backbone):
    model = catalog.with_head(keras.models.clone_model(backbone[0]), 3)
    with pytest.raises(catalog.ModelError, match=law):
        catalog.freeze(model, pattern)


def test_the_head_alone_and_then_everything_again(backbone):
    model = catalog.with_head(keras.models.clone_model(backbone[0]), 3)
    catalog.freeze(model, "norm")
    before = [v.path for v in model.trainable_weights]
    trained = catalog.Trained(model)
    trained.head_alone()
    assert [v.path for v in model.trainable_weights] == ["logits/kernel", "logits/bias"]
    trained.everything()
    assert [v.path for v in model.trainable_weights] == before


def test_a_model_that_is_all_head_has_no_head_phase():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(catalog.ModelError, match="nothing to train but its last"):
        catalog.Trained(model).head_alone()


@pytest.mark.parametrize(
    ("mode", "name", "weights", "wanted"),
    [
        # By hand, of the pixel (255, 0, 51).
        ("tf", "cnn", "", (1.0, -1.0, -0.6)),
        ("torch", "cnn", "", (2.2489083, -2.0357143, -0.9155556)),
        ("caffe", "cnn", "", (51 - 103.939, 0 - 116.779, 255 - 123.68)),
        ("none", "cnn", "", (255.0, 0.0, 51.0)),
        ("auto", "MobileNetV2", "imagenet", (1.0, -1.0, -0.6)),
        ("auto", "densenet121", "a.keras", (2.2489083, -2.0357143, -0.9155556)),
        ("auto", "resnet50", "imagenet", (51 - 103.939, 0 - 116.779, 255 - 123.68)),
        ("auto", "efficientnetb0", "imagenet", (255.0, 0.0, 51.0)),
    ],
)
def test_pixels_are_preprocessed_as_the_weights_want_them(mode, name, weights, wanted):
    function = catalog.preprocessing(mode, name, weights)
    pixel = tf.constant([[[[255.0, 0.0, 51.0]]]])
    np.testing.assert_allclose(function(pixel)[0, 0, 0], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "name", "weights"),
    [("auto", "MobileNetV2", ""), ("auto", "a.keras", ""), ("dataset", "vgg16", "x")],
)
def test_else_the_data_set_decides(mode, name, weights):
    assert catalog.preprocessing(mode, name, weights) is None
