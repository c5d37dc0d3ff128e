"""The mean loss since the last line: exact, whoever adds it up."""

import math

import numpy as np
import tensorflow as tf

from mp_loop.run import mean_loss

LOSSES = np.array([0.1, 2.7, 1e-8, 3e7, 0.3], np.float32)


def metrics(losses, applied=None):
    applied = np.ones(len(losses), bool) if applied is None else applied
    return {"loss": tf.constant(losses), "grads_finite": tf.constant(applied)}


def test_a_mean_that_is_continued_is_that_of_one_process():
    whole, first = mean_loss.MeanLoss(), mean_loss.MeanLoss()
    whole.add(metrics(LOSSES))
    first.add(metrics(LOSSES[:2]))
    second = mean_loss.MeanLoss(first.state())
    for loss in LOSSES[2:]:
        second.add(metrics([loss]))
        second.state()  # a checkpoint, which changes nothing
    assert second.take(None) == whole.take(None) == sum(map(float, LOSSES)) / 5


def test_a_line_begins_anew_and_skipped_steps_do_not_count():
    mean = mean_loss.MeanLoss()
    mean.add(metrics(np.array([1.0, np.nan], np.float32), np.array([True, False])))
    assert mean.take(5.0) == 1.0
    mean.add(metrics(np.array([np.nan], np.float32), np.array([False])))
    assert math.isnan(mean.take(math.nan))
    assert mean.state() == {"loss": 0.0, "steps": 0}
