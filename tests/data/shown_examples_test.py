"""What a page shows of an example."""

import base64
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.data import decoding, shown_examples
from tests.support import data_sets

SIZES = [
    pytest.param((28, 28, 1), (28, 28, 1), id="as it is"),
    pytest.param((128, 1, 3), (128, 1, 3), id="a line"),
    pytest.param((300, 200, 3), (128, 85, 3), id="shrunk"),
    pytest.param((9000, 20, 3), (128, 1, 3), id="huge"),
    pytest.param((8, 8, 2), (8, 8, 2), id="gray with alpha"),
    pytest.param((8, 8, 4), (8, 8, 4), id="colours with alpha"),
]


def decoded(uri):
    head, content = uri.split(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return tf.io.decode_image(base64.b64decode(content)).numpy()


@pytest.mark.parametrize(("shape", "shown"), SIZES)
def test_pictures(shape, shown):
    uri = shown_examples.data_uri(np.full(shape, 200, np.uint8))
    assert decoded(uri).shape == shown and len(uri) < 2000
    assert np.abs(decoded(uri).astype(int) - 200).max() <= 2


def test_noise_is_small_too():
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    assert len(shown_examples.data_uri(noise)) < 20_000


def test_channels_of_no_picture_are_not_shown():
    source = data_sets.source(5, shape=(4, 4, 6))
    assert shown_examples.of(source, source.test, 1) == {}


def test_an_image_of_the_split_wherever_it_is():
    source = data_sets.source(5, shape=(6, 5, 3))
    held = shown_examples.of(source, source.test, 2)
    assert decoded(held["image"]).shape == (6, 5, 3)

    class NotHeld:
        def row(self, index):
            return tf.constant(source.test.inputs[index])

    away = decoding.Split(NotHeld(), source.test.labels, ("a", "b", "c/d.png"))
    assert shown_examples.of(source, away, 2) == held | {"name": "c/d.png"}


def test_rows_and_texts_are_cut():
    source = dataclasses.replace(data_sets.source(5), kind="row", columns=("a", "b"))
    split = decoding.Split(np.array([[0.5, np.inf], [1, 2]]), np.arange(2))
    found = shown_examples.of(source, split, 0)
    assert found == {"row": [["a", 0.5], ["b", np.inf]]}
    many = decoding.Split(np.zeros((1, 100)), np.arange(1))
    source = dataclasses.replace(source, columns=())
    assert len(shown_examples.of(source, many, 0)["row"]) == 30

    class Tokenizer:
        def text(self, tokens):
            return "ä" * int(tokens[0])

    source = dataclasses.replace(source, kind="text", tokenize=Tokenizer())
    split = decoding.Split(np.array([[500], [501]], np.int32), np.arange(2))
    assert shown_examples.of(source, split, 0) == {"text": "ä" * 500}
    assert shown_examples.of(source, split, 1) == {"text": "ä" * 499 + "…"}
