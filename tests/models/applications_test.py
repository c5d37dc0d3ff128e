"""The architectures of keras.applications."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.models import applications, catalog, small_networks


def test_every_architecture_has_a_name_of_its_own():
    names = applications.architectures()
    assert len(names) >= 40
    for known in ("resnet50", "xception", "densenet121", "nasnetmobile"):
        assert known in names
    assert not set(names) & set(small_networks.BY_NAME)


def test_architectures_get_normalized_inputs():
    # Either no preprocessing layer, or its division by 255 taken back.
    model = catalog.build("MobileNetV3Small", (32, 32, 3), 4)
    assert not [x for x in model.layers if isinstance(x, keras.layers.Rescaling)]
    model = catalog.build("EfficientNetB0", (32, 32, 3), 4)
    scales = [x.scale for x in model.layers if isinstance(x, keras.layers.Rescaling)]
    assert np.prod(scales) == 1


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
    function = applications.preprocessing(mode, name, weights)
    pixel = tf.constant([[[[255.0, 0.0, 51.0]]]])
    np.testing.assert_allclose(function(pixel)[0, 0, 0], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "name", "weights"),
    [("auto", "MobileNetV2", ""), ("auto", "a.keras", ""), ("dataset", "vgg16", "x")],
)
def test_else_the_data_set_decides(mode, name, weights):
    assert applications.preprocessing(mode, name, weights) is None
