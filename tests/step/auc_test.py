"""The area under the ROC curve of several classes."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.step import auc, batch_metrics


def exact(labels, scores):
    """The share of pairs that are in order, of each class; a tie is half of one."""
    found = []
    for flags, values in zip(labels.T, scores.T, strict=True):
        yes, no = values[flags == 1][:, None], values[flags == 0]
        if yes.size and no.size:
            found.append(np.mean((yes > no) + 0.5 * (yes == no)))
    return np.mean(found)


@pytest.mark.parametrize("shift", [0, -10, 8], ids=["even", "rare", "frequent"])
def test_probabilities_of_any_size_are_told_apart(shift):
    generator = np.random.default_rng(0)
    labels = (generator.random((500, 4)) < [0.5, 0.1, 0.02, 0]).astype(np.float32)
    logits = generator.normal(labels, 2) + shift
    odds = (1 / (1 + np.exp(-logits))).astype(np.float32)
    metric = auc.MeanAuc(4)
    for part in np.array_split(np.arange(500), 3):
        metric.update_state(labels[part], odds[part])
    assert float(metric.result()) == pytest.approx(exact(labels, odds), abs=2e-3)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_can_measure_a_batch(jit_compile):
    metric = auc.MeanAuc(2)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def measure(labels, odds):
        return batch_metrics.of_one_batch(metric, labels, odds)

    odds = tf.constant([[0.9, 0.2], [0.4, 0.3]])
    assert float(measure(tf.constant([[1.0, 0], [0, 0]]), odds)) == 1
    assert float(measure(tf.zeros((2, 2)), odds)) == 0.5  # no class has a curve
