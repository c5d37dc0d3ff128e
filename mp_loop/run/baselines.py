"""What one gets without a model: always the same answer, whatever the example.

    baselines.of(source, metric)      # {"majority_accuracy": 0.1}

They are part of the summary, so that a report can say against what a result stands.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mp_loop.data import masks, sources
from mp_loop.run import metric
from mp_loop.step import batch_metrics


def of(source: sources.Source, measured: metric.EvaluationMetric) -> dict[str, float]:
    """Measures constant answers on the test data.

    Args:
      source: the data.
      measured: the metric of the run.

    Returns:
      Of a classification `majority_accuracy`, of always the commonest class; of a
      segmentation also `majority_mean_iou`, of pixels. Of a regression `mean_baseline`
      and `median_baseline`: the run's metric of always the mean, and the median, of
      the training targets. Of other tasks nothing.
    """
    if source.task == "regression":
        median = np.median(source.train.labels, axis=0)
        answers = {"mean": source.targets.mean, "median": median}
        return {
            f"{name}_baseline": _of_constant(source, measured, answer)
            for name, answer in answers.items()
        }
    if source.task == "classification":
        counts = np.bincount(source.test.labels)
        return {"majority_accuracy": float(counts.max() / counts.sum())}
    if source.masks is not None:
        counts = masks.counts(source.test.labels, source.middle)[: source.num_classes]
        share = float(counts.max() / counts.sum())
        mean = share / int(np.count_nonzero(counts))
        return {"majority_accuracy": share, "majority_mean_iou": mean}
    return {}


def _of_constant(
    source: sources.Source, measured: metric.EvaluationMetric, answer: np.ndarray
) -> float:
    """Measures one answer for all examples, float64 [targets]."""
    labels = source.prepare_labels(source.test.labels)
    outputs = source.prepare_labels(np.broadcast_to(answer, source.test.labels.shape))
    with tf.device("CPU:0"):
        found = batch_metrics.of_one_batch(measured.metric, labels, outputs)
    return float(found)
