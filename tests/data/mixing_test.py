"""What is mixed with what, and the labels that follow."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.data import mixing

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 10, 8, 3), np.uint8)
LABELS = np.array([0, 1, 2, 3, 1, 1])
NEIGHBOURS = np.array([1, 0, 3, 2, 5, 4])
ONE_HOT = np.eye(4)


def mixed(cut, share, y, x, images=IMAGES):
    columns = [np.full(6, value, np.float32) for value in (share, y, x)]
    return mixing.mix(
        tf.constant(images), tf.constant(LABELS), np.full(6, cut), *columns, classes=4
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_is_a_weighted_mean_of_neighbours(dtype):
    images, labels = mixed(False, 0.75, 0.5, 0.5, IMAGES.astype(dtype))
    wanted = 0.75 * IMAGES + 0.25 * IMAGES[NEIGHBOURS]
    assert images.dtype == dtype
    np.testing.assert_allclose(
        images, np.round(wanted) if dtype == np.uint8 else wanted
    )
    np.testing.assert_allclose(
        labels, 0.75 * ONE_HOT[LABELS] + 0.25 * ONE_HOT[LABELS[NEIGHBOURS]]
    )


@pytest.mark.parametrize(
    ("y", "x", "rows", "columns"),
    [
        (0.5, 0.5, slice(2, 7), slice(2, 6)),
        (0.0, 1.0, slice(0, 3), slice(6, 8)),  # what is inside of it
    ],
)
def test_cutmix_fills_a_hole_and_labels_by_its_area(y, x, rows, columns):
    images, labels = mixed(True, 0.75, y, x)
    wanted = IMAGES.copy()
    wanted[:, rows, columns] = IMAGES[NEIGHBOURS][:, rows, columns]
    np.testing.assert_array_equal(images, wanted)
    hole = np.zeros((10, 8))
    hole[rows, columns] = 1
    np.testing.assert_allclose(
        labels,
        (1 - hole.mean()) * ONE_HOT[LABELS] + hole.mean() * ONE_HOT[LABELS[NEIGHBOURS]],
        rtol=1e-6,
    )


def test_a_batch_cut_at_an_even_place_is_mixed_as_the_whole():
    cut, *columns = mixing.draw(6, seed=3, epoch=1, mixup=0.4, cutmix=1.0)
    assert {True, False} == set(cut)
    drawn = (cut, *columns)

    def of(part):
        arrays = (IMAGES, LABELS, *drawn)
        return mixing.mix(*(tf.constant(a[part]) for a in arrays), classes=4)

    whole, parts = of(slice(0, 6)), [of(slice(0, 2)), of(slice(2, 6))]
    for index in (0, 1):
        together = np.concatenate([part[index] for part in parts])
        np.testing.assert_array_equal(together, whole[index])


@pytest.mark.parametrize(
    ("mixup", "cutmix", "cuts"), [(0.4, 0.0, 0.0), (0.0, 1.0, 1.0), (0.4, 1.0, 0.5)]
)
def test_shares_are_of_the_beta_distribution_that_was_asked_for(mixup, cutmix, cuts):
    count = 40_000
    cut, share, y, x = mixing.draw(count, 0, 0, mixup, cutmix)
    assert abs(cut.mean() - cuts) < 5 * 0.5 / np.sqrt(count)
    for alpha, chosen in ((mixup, share[~cut]), (cutmix, share[cut])):
        if len(chosen):
            assert abs(chosen.mean() - 0.5) < 5 * chosen.std() / np.sqrt(len(chosen))
            # Of Beta(a, a).
            np.testing.assert_allclose(chosen.var(), 1 / (8 * alpha + 4), rtol=0.03)
    for middle in (y, x):
        assert abs(middle.mean() - 0.5) < 0.01
        assert middle.min() >= 0
        assert middle.max() < 1
    again, other = (mixing.draw(count, 0, epoch, mixup, cutmix) for epoch in (0, 1))
    np.testing.assert_array_equal(again[1], share)
    assert not np.array_equal(other[1], share)
