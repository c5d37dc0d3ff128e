"""Which batches an epoch holds, and how they are cut."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mp_loop.config import choices, errors
from mp_loop.data import batching, mixing, order, rand_augment, recipes
from tests.support import data_sets

RECIPE = recipes.Recipe("flip_crop", rand_augment=9, mixup=0.4, cutmix=1.0)


def context(worker, workers, replicas):
    return tf.distribute.InputContext(workers, worker, replicas)


def test_an_epoch_holds_each_example_once_and_drops_the_remainder():
    made = data_sets.source(23)
    assert batching.steps_per_epoch(made, 5) == 4
    seen = data_sets.labels(batching.training_batches(made, 5, seed=1, epoch=0))
    assert [len(batch) for batch in seen] == [5, 5, 5, 5]
    assert len(set(sum(seen, []))) == 20
    whole = sum(
        data_sets.labels(batching.training_batches(made, 1, seed=1, epoch=0)), []
    )
    assert sorted(whole) == list(range(23))
    # The batch size only cuts the same order elsewhere.
    assert sum(seen, []) == whole[:20]


def test_images_travel_with_their_labels():
    made = data_sets.source(23)
    for x, y in batching.training_batches(made, 5, seed=3, epoch=1):
        assert x.dtype == tf.float32 and y.dtype == tf.int64
        np.testing.assert_array_equal(x, made.train.inputs[y.numpy()])


def test_order_depends_on_seed_and_epoch_and_they_do_not_collide():
    made = data_sets.source(64)
    pairs = [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (3, 0), (0, 3), (1 + 2**32, 2)]
    orders = {
        tuple(sum(data_sets.labels(batching.training_batches(made, 8, *pair)), []))
        for pair in pairs
    }
    assert len(orders) == len(pairs)


@pytest.mark.parametrize("augment", [*choices.AUGMENTATIONS, RECIPE])
def test_batches_do_not_depend_on_global_seeds_or_earlier_calls(augment):
    made = data_sets.source(40)
    tf.random.set_seed(1)
    first = data_sets.batches(batching.training_batches(made, 8, 7, 2, augment=augment))
    tf.random.set_seed(2)
    tf.random.uniform([3])
    dataset = batching.training_batches(made, 8, 7, 2, augment=augment)
    data_sets.assert_same(data_sets.batches(dataset), first)
    data_sets.assert_same(
        data_sets.batches(dataset), first
    )  # Nor on having been read before.


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**63 - 1),
    batch_size=st.integers(1, 12),
    augment=st.sampled_from([*choices.AUGMENTATIONS, RECIPE]),
    at=st.floats(0, 1),
)
def test_start_batch_leaves_the_other_batches_bitwise_as_they_are(
    seed, epoch, batch_size, augment, at
):
    made = data_sets.source(30)
    batch_size *= 2 if augment is RECIPE else 1
    start = round(at * batching.steps_per_epoch(made, batch_size))
    whole = data_sets.batches(
        batching.training_batches(made, batch_size, seed, epoch, augment=augment)
    )
    rest = data_sets.batches(
        batching.training_batches(made, batch_size, seed, epoch, start, augment=augment)
    )
    data_sets.assert_same(rest, whole[start:])


def test_training_inputs_are_normalized(mini):
    x, y = next(iter(batching.training_batches(mini, 64, seed=0, epoch=0)))
    where = np.argsort(order.random_words(6000, 0, 0)[:, 0])[:64]
    np.testing.assert_array_equal(y, mini.train.labels[where])
    wanted = (mini.train.inputs[where] / 255 - mini.mean) / mini.std
    # Two roundings of values up to 2: 2 * 2 * 2**-24, and of the constants.
    np.testing.assert_allclose(x, wanted, atol=6e-7)


def test_evaluation_is_in_order_normalized_alike_and_complete(mini):
    seen = data_sets.batches(batching.evaluation_batches(mini, 300))
    assert [len(y) for _, y in seen] == [300, 300, 300, 100]
    np.testing.assert_array_equal(
        np.concatenate([y for _, y in seen]), mini.test.labels
    )
    wanted = (mini.test.inputs / 255 - mini.mean) / mini.std
    got = np.concatenate([x for x, _ in seen])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=6e-7)


def test_augmentation_follows_the_position_not_the_batch_size():
    made = data_sets.source(24)
    one = data_sets.batches(
        batching.training_batches(made, 4, 1, 1, augment="flip_shift")
    )
    two = data_sets.batches(
        batching.training_batches(made, 8, 1, 1, augment="flip_shift")
    )
    np.testing.assert_array_equal(
        np.concatenate([x for x, _ in one]), np.concatenate([x for x, _ in two])
    )
    plain = data_sets.batches(batching.training_batches(made, 8, 1, 1))
    assert any((a != b).any() for (a, _), (b, _) in zip(two, plain, strict=True))


@pytest.mark.parametrize("max_shift", [0, 2])
def test_flip_shift_moves_images_by_max_shift_at_most(max_shift):
    made = data_sets.source(24)
    recipe = recipes.Recipe("flip_shift", max_shift=max_shift)
    moved, plain = (
        next(iter(batching.training_batches(made, 24, 1, 1, augment=x, raw=True)))[0]
        for x in (recipe, "none")
    )
    found = []
    for new, old in zip(moved.numpy(), plain.numpy(), strict=True):
        for image in (old, old[:, ::-1]):
            wide = np.pad(image, [(3, 3), (3, 3), (0, 0)])
            found += [
                max(abs(dy), abs(dx))
                for dy, dx in itertools.product(range(-3, 4), repeat=2)
                if np.array_equal(wide[3 - dy : 9 - dy, 3 - dx : 8 - dx], new)
            ]
    assert len(found) == 24 and max(found) == max_shift
    with pytest.raises(errors.DataError, match=r"`max_shift` \(5\) must be less than"):
        recipe = recipes.Recipe("flip_shift", max_shift=5)
        batching.training_batches(made, 4, 0, 0, augment=recipe)


def test_a_recipe_makes_its_changes_one_after_the_other():
    made = dataclasses.replace(data_sets.source(24), preprocess=lambda pixels: pixels)
    (x, y), *_ = batching.training_batches(made, 8, 1, 1, augment=RECIPE)
    (plain, labels), *_ = batching.training_batches(made, 8, 1, 1, augment="flip_crop")
    strength = {"magnitude": RECIPE.rand_augment}
    drawn = (column[:8] for column in rand_augment.draw(24, 1, 1))
    images = rand_augment.change(plain, *drawn, **strength)
    drawn = (column[:8] for column in mixing.draw(24, 1, 1, 0.4, 1.0))
    wanted = mixing.mix(images, labels, *drawn, classes=made.num_classes)
    np.testing.assert_array_equal(x, wanted[0])
    np.testing.assert_array_equal(y, wanted[1])


def test_crops_are_preprocessed_as_the_source_says():
    made = dataclasses.replace(
        data_sets.source(24), preprocess=lambda pixels: pixels - 1000.0
    )
    (x, _), *_ = batching.training_batches(made, 8, 1, 1, augment="flip_crop")
    assert x.dtype == tf.float32 and -1000 <= np.min(x) <= np.max(x) <= -745
    (x, _), *_ = batching.evaluation_batches(made, 5)
    np.testing.assert_array_equal(x, made.test.inputs[:5].astype(np.float32) - 1000)


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (dict(batch_size=0), r"`batch_size` \(0\) must be between 1 and the 8"),
        (dict(batch_size=9), r"`batch_size` \(9\) must be between 1 and the 8"),
        (dict(seed=-1), r"`seed` \(-1\)"),
        (dict(seed=2**63), r"`seed` \(9223372036854775808\)"),
        (dict(epoch=-1), r"`epoch` \(-1\)"),
        (dict(start_batch=-1), r"`start_batch` \(-1\)"),
        (dict(start_batch=5), r"`start_batch` \(5\) must be between 0 and the 4"),
        (dict(augment="mixup"), r"`augment` \('mixup'\) must be one of"),
        (
            dict(augment=RECIPE, context=context(0, 1, 2)),
            r"`batch_size` \(2\) must be even on each of 2 replicas",
        ),
        (
            dict(context=context(0, 1, 4)),
            r"`batch_size` \(2\) must be a multiple of the 4 replicas",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(arguments, law):
    arguments = dict(batch_size=2, seed=0, epoch=0) | arguments
    with pytest.raises(errors.DataError, match=law):
        batching.training_batches(data_sets.source(8), **arguments)


def test_evaluation_batch_size_of_zero_is_refused():
    with pytest.raises(errors.DataError, match=r"`batch_size` \(0\)"):
        batching.evaluation_batches(data_sets.source(8), 0)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("workers, replicas", [(1, 2), (2, 2), (2, 4)])
def test_the_shares_of_all_workers_are_the_batch(workers, replicas, start):
    recipe = dataclasses.replace(RECIPE, augment="flip_shift", rand_augment=0)
    arguments = (data_sets.source(26), 8, 1, 3, start, recipe)
    whole = data_sets.batches(batching.training_batches(*arguments))
    shares = [
        data_sets.batches(
            batching.training_batches(*arguments, context(worker, workers, replicas))
        )
        for worker in range(workers)
    ]
    local = replicas // workers
    assert {len(share) for share in shares} == {local * len(whole)} != {0}
    for i, (inputs, classes) in enumerate(whole):
        parts = [
            part for share in shares for part in share[i * local : (i + 1) * local]
        ]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), inputs)
        np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), classes)


@pytest.mark.parametrize("augment", ["none", "flip_shift", "flip_crop"])
def test_raw_batches_are_pixels_and_become_the_same_numbers(augment):
    made = data_sets.source(24, shape=(8, 8, 3))
    made = dataclasses.replace(
        made, input_shape=(6, 6, 3), mean=np.full(3, 0.3), std=np.full(3, 0.21)
    )
    arguments = made, 8, 3, 1
    ready = batching.training_batches(*arguments, augment=augment)
    raw = batching.training_batches(*arguments, augment=augment, raw=True)
    assert raw.element_spec[0] == tf.TensorSpec((8, 6, 6, 3), tf.uint8)
    prepared = raw.map(lambda x, y: (made.prepare_in_step(x), y))
    data_sets.assert_same(data_sets.batches(prepared), data_sets.batches(ready))
