"""Area under the ROC curve of several classes, each against all others.

metric = auc.MeanAuc(num_classes=3)
metric.update_state(labels, probabilities)      # [n, 3] each, labels 0 or 1
metric.result()                                 # 0.5 by chance, 1 at best
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from mp_loop.config import json_values

_THRESHOLDS = 1001


class MeanAuc(keras.metrics.AUC):
    """The mean of the classes' areas under their ROC curves.

    Keras counts, at evenly spaced thresholds. Probabilities of rare classes are near 0,
    where these would not tell them apart: odds are counted by their fourth root, which
    keeps their order. A class that no example has, or all have, has no curve and does
    not count; where no class has one, the value is that of chance.
    """

    def __init__(
        self, num_classes: int, name: str = "auc", dtype: str | None = None
    ) -> None:
        """Prepares the counts."""
        super().__init__(
            num_thresholds=_THRESHOLDS,
            multi_label=True,
            num_labels=num_classes,
            name=name,
            dtype=dtype,
        )

    def update_state(
        self,
        y_true: tf.Tensor | np.ndarray,
        y_pred: tf.Tensor | np.ndarray,
        sample_weight: tf.Tensor | np.ndarray | None = None,
    ) -> None:
        """Counts a batch: labels, 0 or 1, and probabilities, [n, classes] each."""
        yes, no = (keras.ops.sqrt(keras.ops.sqrt(p)) for p in (y_pred, 1 - y_pred))
        super().update_state(y_true, yes / (yes + no), sample_weight)

    def of_each_class(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the area of each class, float32 [classes], and whether it has one."""
        # [thresholds, classes]; the lowest threshold takes every example for positive.
        right, wrong = self.true_positives, self.false_positives
        with_it, without = right[0], wrong[0]
        rises = keras.ops.divide_no_nan(right, with_it)
        widths = keras.ops.divide_no_nan(wrong, without)
        heights = (rises[:-1] + rises[1:]) / 2
        areas = keras.ops.sum((widths[:-1] - widths[1:]) * heights, axis=0)
        return areas, (with_it > 0) & (without > 0)

    def result(self) -> tf.Tensor:
        """Returns the value, float32 []."""
        areas, known = self.of_each_class()
        counts = keras.ops.cast(known, areas.dtype)
        number = keras.ops.sum(counts)
        mean = keras.ops.divide_no_nan(keras.ops.sum(areas * counts), number)
        return keras.ops.where(number > 0, mean, 0.5)

    def get_config(self) -> dict[str, json_values.Json]:
        """Returns the arguments."""
        return {
            "num_classes": self.num_labels, "name": self.name, "dtype": self.dtype
        }  # fmt: skip
