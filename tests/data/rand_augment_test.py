"""The changes of RandAugment, beside Pillow's."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from mp_loop.config import choices
from mp_loop.data import rand_augment

NAMES = list(rand_augment.CHANGES)
RANDOM = np.random.default_rng(0)
COLORED = RANDOM.normal(128, 40, (23, 31, 3)).clip(0, 255).astype(np.uint8)
GRAY = COLORED[..., :1]


def changed(image, name, sign, magnitude):
    """One change of one image, the other being none."""
    drawn = [tf.constant([2 * NAMES.index(x) + sign]) for x in (name, "identity")]
    found = rand_augment.change(tf.constant(image[None]), *drawn, magnitude)
    assert found.dtype == tf.uint8
    return found[0].numpy().astype(int)


def enhanced(kind):
    return lambda image, s: getattr(ImageEnhance, kind)(image).enhance(1 + 0.9 * s)


OF_COLOR = {
    "identity": lambda image, s: image,
    "brightness": enhanced("Brightness"),
    "color": enhanced("Color"),
    "contrast": enhanced("Contrast"),
    "sharpness": enhanced("Sharpness"),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 255 - 255 * abs(s)),
    "auto_contrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}


@pytest.mark.parametrize("image", [COLORED, GRAY], ids=["rgb", "gray"])
@pytest.mark.parametrize("magnitude", [9, 30])
@pytest.mark.parametrize("name", list(OF_COLOR))
def test_colors_are_those_of_pillow(image, magnitude, name):
    pillow = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    for sign in (0, 1):
        strength = (2 * sign - 1) * magnitude / choices.MAX_MAGNITUDE
        wanted = np.asarray(OF_COLOR[name](pillow, strength)).reshape(image.shape)
        found = changed(image, name, sign, magnitude)
        np.testing.assert_allclose(found, wanted.astype(int), atol=1)


def affine(*matrix):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def moved(name, strength):
    shear, across, down = 0.3 * strength, 14 * strength, 10 * strength
    return {  # Pillow counts from the corner of a pixel, not from its middle.
        "shear_x": affine(1, shear, -shear / 2, 0, 1, 0),
        "shear_y": affine(1, 0, 0, shear, 1, -shear / 2),
        "translate_x": affine(1, 0, across, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, down),
        "rotate": lambda image: image.rotate(-30 * strength, Image.Resampling.BILINEAR),
    }[name]


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize(
    "name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"]
)
def test_what_moves_goes_where_it_goes_in_pillow(name, sign):
    white = np.full_like(COLORED, 255)
    strength = 2 * sign - 1
    found = changed(COLORED, name, sign, 30)
    wanted = np.asarray(moved(name, strength)(Image.fromarray(COLORED))).astype(int)
    # At the border, Pillow and TensorFlow mix with black in different ways.
    inside = changed(white, name, sign, 30) == 255
    inside &= np.asarray(moved(name, strength)(Image.fromarray(white))) == 255
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[inside], wanted[inside], atol=1)


def test_each_image_has_its_own_two_changes_one_after_the_other():
    drawn = [(NAMES.index("solarize"), NAMES.index("posterize"))]
    drawn += [(NAMES.index("posterize"), NAMES.index("solarize"))]
    drawn += [(NAMES.index("identity"), NAMES.index("equalize"))]
    columns = (2 * np.array(drawn).T).astype(np.int32)
    images = tf.constant(np.stack([COLORED] * 3))
    change = tf.function(rand_augment.change, autograph=False)
    found = change(images, *map(tf.constant, columns), 20)
    for image, names in zip(found, drawn, strict=True):
        wanted = COLORED
        for number in names:
            wanted = changed(wanted, NAMES[number], 0, 20).astype(np.uint8)
        np.testing.assert_array_equal(image, wanted)
    none = change(images[:0], *tf.zeros((2, 0), tf.int32), 20)
    assert none.shape == (0, *COLORED.shape)


def test_all_changes_are_drawn_about_equally_and_anew_in_each_epoch():
    first, second = rand_augment.draw(28_000, seed=0, epoch=0)
    for drawn in (first, second):
        counts = np.bincount(drawn, minlength=28)
        assert len(counts) == 28
        assert np.all(np.abs(counts - 1_000) < 5 * 31)  # five standard deviations
    assert not np.array_equal(first, second)
    again = rand_augment.draw(28_000, seed=0, epoch=0)
    np.testing.assert_array_equal(again, (first, second))
    other = rand_augment.draw(28_000, seed=0, epoch=1)
    assert not np.array_equal(other, (first, second))
