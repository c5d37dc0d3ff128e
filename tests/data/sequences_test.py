"""Texts packed into sequences, and what padding weighs."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import batching, decoding, sequences, sources
from mp_loop.step import losses

END, START = 9, 8


def tokens(start=None, size=10):
    return sequences.Tokens(
        lambda texts: [[int(c) for c in text] for text in texts], END, start, size
    )


PACKED = {
    "end between": (["12", "3"], None, 3, [[9, 1, 2, 9], [9, 3, 9, 0]], 1),
    "a start of its own": (["12", "3"], START, 3, [[8, 1, 2, 9], [9, 8, 3, 9]], 0),
    "empty texts": (["", "12", ""], None, 3, [[9, 1, 2, 9]], 0),
    "one text, many rows": (["12345"], None, 2, [[9, 1, 2], [2, 3, 4], [4, 5, 9]], 0),
    "shorter than a row": (["1"], None, 5, [[9, 1, 9, 0, 0, 0]], 3),
}


@pytest.mark.parametrize("name", PACKED)
def test_rows(name):
    texts, start, length, rows, padding = PACKED[name]
    packed = sequences.pack("made", texts, tokens(start), length)
    assert packed.rows.tolist() == rows and packed.rows.dtype == np.int32
    assert packed.padding == padding
    assert packed.tokens == np.size(packed.rows[:, 1:]) - padding
    wanted = [length] * (len(rows) - 1) + [length - padding]
    assert packed.counts is None if not padding else packed.counts.tolist() == wanted
    inputs, labels = packed.take(tf.constant([0]))
    assert inputs.numpy().tolist() == [rows[0][:-1]]
    assert labels.numpy().tolist() == [rows[0][1:]]


def test_every_token_is_the_label_of_one_place():
    packed = sequences.pack("made", ["123", "4567", "8"], tokens(), 4)
    labels = packed.rows[:, 1:].ravel()[: packed.tokens]
    assert labels.tolist() == [1, 2, 3, 9, 4, 5, 6, 7, 9, 8, 9]


REFUSED = {
    "no text": ([], {}, "holds no text"),
    "empty texts": (["", ""], {}, "holds no text"),
    "another vocabulary": (
        ["12"],
        {"size": 5},
        r"from 1 to 9; the model's .* \[0, 5\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed(name):
    texts, arguments, said = REFUSED[name]
    with pytest.raises(errors.DataError, match=said):
        sequences.pack("made", texts, tokens(**arguments), 4)


def test_too_many_tokens_are_refused_before_they_fill_memory(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 16)
    with pytest.raises(errors.DataError, match="takes 0.0 GiB decoded; at most"):
        sequences.pack("made", ["123456"], tokens(), 4)


SHARES = {"a tenth": (0.1, 4), "the least": (1e-6, 4), "the most": (1 - 1e-6, 1)}


@pytest.mark.parametrize("name", SHARES)
def test_what_is_held_out_is_the_end(name):
    share, kept = SHARES[name]
    packed = sequences.pack("made", ["123456789"], tokens(), 2)
    train, test = packed.split(share)
    assert len(train) == kept and len(train) + len(test) == len(packed)
    assert (train.padding, test.padding) == (0, packed.padding)
    np.testing.assert_array_equal(np.concatenate([train.rows, test.rows]), packed.rows)


def source():
    """Six sequences of four labels, the last with one that counts."""
    packed = sequences.pack("made", ["1234567812345678123"], tokens(), 4)
    assert (len(packed), packed.padding) == (5, 0)
    padded = sequences.pack("made", ["12345678123456781234"], tokens(), 4)
    assert (len(padded), padded.padding) == (6, 3)
    empty = np.empty(0)
    return sources.Source(
        "made", padded, padded, 10, (4,), (), empty, empty, kind="text"
    )


def loss_of_each(labels):
    """Any loss that differs from place to place."""
    return tf.cast(labels, tf.float32) ** 2


def mean_of_what_counts(rows):
    """In float64, from the rows themselves: what follows the end is padding."""
    labels = rows[:, 1:].astype(np.float64)
    counted = np.ones_like(labels, bool)
    counted[labels[:, 0] == END, 1:] = False
    return (labels**2)[counted].mean()


@pytest.mark.parametrize("parts", [1, 3])
def test_the_weighted_mean_of_a_batch_is_that_of_what_counts(parts):
    """Of the whole batch, and as the mean of its micro-batches or replicas."""
    made = source()
    seen = []
    for inputs, labels, weights in batching.training_batches(made, 6, 0, 0):
        rows = np.concatenate([inputs[:, :1], labels], axis=1)
        seen += rows[:, 1].tolist()
        loss = losses.of(lambda labels, _: loss_of_each(labels))
        pieces = [tf.split(x, parts) for x in (labels, weights)]
        means = [float(loss(a, a, w)) for a, w in zip(*pieces, strict=True)]
        assert np.mean(means) == pytest.approx(mean_of_what_counts(rows), rel=1e-6)
    assert END in seen  # of the padded one


def test_the_weighted_mean_of_an_evaluation_is_that_of_what_counts():
    made, total, count = source(), 0.0, 0
    for _, labels, weights in batching.evaluation_batches(made, 4):
        total += float(tf.reduce_sum(loss_of_each(labels) * weights))
        count += tf.size(labels).numpy()
    rows = made.test.rows
    assert total / count == pytest.approx(mean_of_what_counts(rows), rel=1e-6)


def test_without_padding_there_are_no_weights():
    packed = sequences.pack("made", ["1234567812345678123"], tokens(), 4)
    empty = np.empty(0)
    made = sources.Source(
        "made", packed, packed, 10, (4,), (), empty, empty, kind="text"
    )
    for batches in (
        batching.training_batches(made, 2, 0, 0),
        batching.evaluation_batches(made, 2),
    ):
        assert len(batches.element_spec) == 2


def test_a_batch_is_the_same_from_wherever_it_is_read():
    made = source()
    whole = list(batching.training_batches(made, 2, seed=1, epoch=2))
    later = list(batching.training_batches(made, 2, seed=1, epoch=2, start_batch=1))
    for one, other in zip(whole[1:], later, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
