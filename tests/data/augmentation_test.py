"""What an augmentation draws and does."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import choices
from mp_loop.data import augmentation, order


@pytest.mark.parametrize("small", [0, 64])
@pytest.mark.parametrize(
    ("flip", "dy", "dx"),
    [(0, 0, 0), (1, 0, 0), (0, 4, 0), (0, -4, 0), (0, 0, 3), (0, 0, -3), (1, -2, 1)],
)
def test_flip_shift_is_a_flip_then_a_shift_with_black(flip, dy, dx, small, monkeypatch):
    monkeypatch.setattr(augmentation, "_SMALL", small)
    images = np.random.default_rng(0).integers(1, 256, (2, 6, 5, 3), np.uint8)
    moved = augmentation.flip_shift(
        tf.constant(images), *tf.constant([[flip] * 2, [dy] * 2, [dx] * 2]), max_shift=4
    )
    wanted = np.zeros_like(images)
    mirrored = images[:, :, ::-1] if flip else images
    for row in range(6):
        for column in range(5):
            if 0 <= row - dy < 6 and 0 <= column - dx < 5:
                wanted[:, row, column] = mirrored[:, row - dy, column - dx]
    np.testing.assert_array_equal(moved, wanted)


def test_flip_shift_moves_each_example_its_own_way():
    images = np.random.default_rng(0).integers(1, 256, (2, 6, 5, 1), np.uint8)
    moved = augmentation.flip_shift(
        tf.constant(images), *tf.constant([[1, 0], [0, 2], [0, 0]]), max_shift=2
    )
    np.testing.assert_array_equal(moved[0], images[0, :, ::-1])
    np.testing.assert_array_equal(moved[1, 2:], images[1, :-2])


def test_augmentation_draws_every_flip_and_shift_about_equally():
    words = order.random_words(90_000, 0, 0)[:, 1]
    flip, dy, dx = augmentation.draw_flip_shift(words, max_shift=4)
    # Five standard deviations of a binomial count.
    assert abs(flip.sum() - 45_000) < 5 * 150
    for shift in (dy, dx):
        values, counts = np.unique(shift, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert np.all(np.abs(counts - 10_000) < 5 * 95)
    together = np.unique(np.stack([flip, dy, dx]), axis=1, return_counts=True)[1]
    assert len(together) == 2 * 9 * 9
    assert np.all(np.abs(together - 556) < 5 * 24)


@pytest.mark.parametrize("flip", [0, 1])
def test_flip_crop_of_all_is_the_image_or_its_mirror(flip):
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)
    drawn = [tf.constant([v] * 2) for v in (flip, 1.0, 0.3, 0.7)]
    wanted = images[:, :, ::-1] if flip else images
    np.testing.assert_allclose(
        augmentation.flip_crop(tf.constant(images), *drawn, size=(6, 5)),
        wanted,
        atol=1e-3,
    )


@pytest.mark.parametrize(("y", "x"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.25)])
def test_flip_crop_takes_the_part_it_is_told(y, x):
    # A plane: what is interpolated is exact, and then rounded.
    rows, columns = np.mgrid[0:9, 0:9]
    images = (10 * rows + columns).astype(np.uint8)[None, :, :, None]
    drawn = [tf.constant([v]) for v in (1, 0.25, y, x)]
    got = augmentation.flip_crop(tf.constant(images), *drawn, size=(9, 9))[0, :, :, 0]
    top, left = 4 * y, 4 * x
    wanted = 10 * (top + rows / 2) + (left + 4 - columns / 2)
    np.testing.assert_allclose(got, wanted, atol=0.5001)


def test_flip_crop_draws_area_and_place_uniformly():
    drawn = augmentation.draw_flip_crop(order.random_words(90_000, 0, 0)[:, 1])
    flip, area, y, x = drawn
    assert abs(flip.sum() - 45_000) < 5 * 150
    for values, low in ((area, augmentation.MIN_CROP), (y, 0.0), (x, 0.0)):
        counts, _ = np.histogram(values, bins=10, range=(low, 1.0))
        assert counts.sum() == 90_000
        assert np.all(np.abs(counts - 9_000) < 5 * 90)
    assert np.all(np.abs(np.corrcoef(np.stack(drawn)) - np.eye(4)) < 5 / 300)


def test_every_augmentation_is_a_valid_setting():
    assert ("none", *augmentation.AUGMENTATIONS) == choices.AUGMENTATIONS
