"""How good predictions are, where examples have labels.

scores = prediction_scores.Scores(wanted)
scores.add(found)
scores.lines()               # ["accuracy 0.8910 on 1000 examples with labels"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mp_loop.run import prediction

if TYPE_CHECKING:  # It imports TensorFlow, which takes seconds.
    from mp_loop.data import raw_examples


class Scores:
    """What was found of all examples together.

    Attributes:
      readable: examples that were predicted on.
    """

    def __init__(self, wanted: raw_examples.Wanted) -> None:
        """Begins with none."""
        self.readable = 0
        self._wanted = wanted
        self._classes = frozenset(wanted.class_names)
        self._labelled = self._known = self._right = 0
        self._error = 0.0  # of all examples, each the mean over its targets or labels
        # By the number of the label, and of the prediction, of a pixel.
        self._pixels = np.zeros((256, 256), np.int64)

    def add(self, found: prediction.Prediction) -> None:
        """Counts an example."""
        label = found.example.label
        self.readable += 1
        if label is None:
            return
        self._labelled += 1
        if found.mask is not None:
            self._known += 1
            self._pixels += pixels(found, self._wanted)
        elif found.numbers:
            numbers = np.array(found.numbers)
            if self._wanted.task == "multilabel":
                numbers = numbers >= 0.5
            self._known += 1
            self._error += float(np.mean(np.abs(np.subtract(numbers, label))))
        else:
            self._known += label in self._classes
            self._right += label == found.class_name

    def lines(self) -> list[str]:
        """Says how good they are, and how many labels are of no class of the run."""
        said = []
        if self._known:
            on = f"on {self._known} examples with labels"
            said.append(f"{self._told()} {on}")
        if self._labelled > self._known:
            others = self._labelled - self._known
            said.append(f"{others} labels are no classes of the run")
        return said

    def _told(self) -> str:
        task, error = self._wanted.task, self._error / self._known
        if task == "regression":
            return f"mean absolute error {error:g}"
        if task == "multilabel":
            return f"binary accuracy {1 - error:.4f}"
        if task == "segmentation":
            right = np.diagonal(self._pixels)
            union = self._pixels.sum(axis=0) + self._pixels.sum(axis=1) - right
            overlap = np.mean(right[union > 0] / union[union > 0])
            accuracy = right.sum() / max(1, self._pixels.sum())
            return f"mean IoU {overlap:.4f}, pixel accuracy {accuracy:.4f}"
        return f"accuracy {self._right / self._known:.4f}"


def pixels(found: prediction.Prediction, wanted: raw_examples.Wanted) -> np.ndarray:
    """Counts the pixels of a mask that are of a class of the run.

    Args:
      found: with a mask, and a label of its size or larger, whose middle counts.
      wanted: what the run's examples are.

    Returns:
      int64 [256, 256], by the number of the label and of the prediction.
    """
    height, width = found.mask.shape
    label = found.example.label
    top, left = (label.shape[0] - height) // 2, (label.shape[1] - width) // 2
    label = label[top : top + height, left : left + width]
    counts = np.isin(label, wanted.mask_values)
    pairs = label[counts].astype(np.int64) * 256 + found.mask[counts]
    return np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
