"""What tells data from other data."""

import dataclasses

import numpy as np
import pytest

from mp_loop.data import decoding, fingerprints, sequences, sources

GENERATOR = np.random.default_rng(0)


def split(count=6):
    inputs = GENERATOR.integers(0, 256, (count, 4, 4, 3), "u1")
    return decoding.Split(inputs, np.arange(count) % 2)


SOURCE = sources.Source(
    name="photos",
    train=split(6),
    test=split(4),
    num_classes=2,
    input_shape=(4, 4, 3),
    class_names=("cat", "dog"),
    mean=np.zeros(3),
    std=np.ones(3),
)
TEXTS = sequences.Sequences(np.arange(12, dtype=np.int32).reshape(3, 4), padding=1)
PACKED = dataclasses.replace(SOURCE, train=TEXTS, test=TEXTS, class_names=())


def changed(part, name, index, value):
    """The part with one number that is another."""
    values = getattr(part, name).copy()
    values[index] = value
    return dataclasses.replace(part, **{name: values})


OTHERS = {
    "a pixel": (
        {"train": changed(SOURCE.train, "inputs", (5, 3, 3, 2), 7)},
        ["other inputs to train on"],
    ),
    "a label": (
        {"test": changed(SOURCE.test, "labels", 0, 1)},
        ["other labels to evaluate on"],
    ),
    "an example moved": (
        {"train": split(5), "test": split(5)},
        [
            "5 examples to train on instead of 6",
            "5 examples to evaluate on instead of 4",
        ],
    ),
    "a class more": (
        {"num_classes": 3, "class_names": ("cat", "dog", "fox")},
        ["3 classes instead of 2"],
    ),
    "a class renamed": ({"class_names": ("cat", "fox")}, ["other names of classes"]),
    "another size": (
        {"input_shape": (2, 2, 3)},
        ["examples of shape [2, 2, 3] instead of [4, 4, 3]"],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_is_said(name):
    changes, said = OTHERS[name]
    now = fingerprints.of(dataclasses.replace(SOURCE, **changes))
    assert fingerprints.differences(fingerprints.of(SOURCE), now) == said


def test_the_same_data_are_the_same():
    same = dataclasses.replace(
        SOURCE,
        name="moved",
        train=decoding.Split(SOURCE.train.inputs[::1].copy(), SOURCE.train.labels),
    )
    assert fingerprints.of(same) == fingerprints.of(SOURCE)
    # The values are those of other runs, and of other machines.
    assert fingerprints.of(PACKED)["train"] == {"examples": 3, "tokens": "8be3e78d"}


@pytest.mark.parametrize(
    "other",
    [changed(TEXTS, "rows", (2, 3), 0), dataclasses.replace(TEXTS, padding=0)],
    ids=["a token", "the end of the texts"],
)
def test_packed_texts_are_compared(other):
    now = fingerprints.of(dataclasses.replace(PACKED, train=other))
    said = fingerprints.differences(fingerprints.of(PACKED), now)
    assert said == ["other tokens to train on"]


def test_what_another_version_wrote_is_compared_as_far_as_it_is_known():
    found = fingerprints.of(SOURCE)
    assert fingerprints.differences({}, found) == []
    other = {"classes": 3, "train": {"examples": 6, "sha256": "0"}, "test": 4}
    assert fingerprints.differences(other, found) == ["2 classes instead of 3"]
