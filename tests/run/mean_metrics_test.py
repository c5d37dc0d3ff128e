"""Means since the last line: exact, whoever adds them up."""

import math

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.run import mean_metrics

LOSSES = np.array([0.1, 2.7, 1e-8, 3e7, 0.3], np.float32)
ACCURACIES = np.array([0.1, 0.7, 0.3, 1 / 3, 0.9], np.float32)


def returned(part=slice(None), applied=None, **more):
    losses = LOSSES[part]
    applied = np.ones(len(losses), bool) if applied is None else applied
    values = {"loss": losses, "accuracy": ACCURACIES[part], "grads_finite": applied}
    return {name: tf.constant(value) for name, value in (values | more).items()}


def test_means_that_are_continued_are_those_of_one_process():
    whole, first = mean_metrics.MeanMetrics(), mean_metrics.MeanMetrics()
    whole.add(returned())
    first.add(returned(slice(2)))
    second = mean_metrics.MeanMetrics(first.state())
    for i in range(2, 5):
        second.add(returned(slice(i, i + 1)))
        second.state()  # a checkpoint, which changes nothing
    wanted = {
        "loss": sum(map(float, LOSSES)) / 5,
        "accuracy": sum(map(float, ACCURACIES)) / 5,
    }
    assert second.take() == whole.take() == wanted


def test_a_line_begins_anew_and_skipped_steps_do_not_count():
    means = mean_metrics.MeanMetrics()
    applied = np.array([True, True, False, False, False])
    losses = np.array([1.0, 2.0, np.nan, 3.0, np.nan], np.float32)
    means.add(returned(applied=applied, loss=losses))
    means.add(returned(slice(1), np.array([False])))
    assert means.take() == {"loss": 1.5, "accuracy": pytest.approx(0.4)}
    means.add(returned(slice(1), np.array([False])))
    assert means.take() == {}
    assert means.state() == {"steps": 0}


def test_only_what_is_a_mean_over_a_batch_is_averaged():
    means = mean_metrics.MeanMetrics()
    means.add(returned(loss_scale=np.full(5, 8.0), learning_rate=np.ones(5)))
    assert set(means.take()) == {"loss", "accuracy"}


def test_what_a_checkpoint_of_an_earlier_version_does_not_know_is_not_made_up():
    means = mean_metrics.MeanMetrics({"loss": 2.0, "steps": 2})
    means.add(returned(slice(1)))
    found = means.take()
    assert found["loss"] == (2.0 + float(LOSSES[0])) / 3
    assert math.isnan(found["accuracy"])
    means.add(returned(slice(1)))
    assert means.take()["accuracy"] == float(ACCURACIES[0])
