"""The metric that `--metric` names: what it is called, and which way is better.

found = metric.make("mse", from_logits=True, source=source)
found.key                  # "eval_mean_squared_error"
found.higher_is_better     # False
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf

from mp_loop.config import names
from mp_loop.data import sources, targets
from mp_loop.distributed import nests
from mp_loop.step import auc, batch_metrics


@dataclasses.dataclass(frozen=True)
class EvaluationMetric:
    """A metric of the test data.

    Attributes:
      metric: Keras' object; None: perplexity, the exponential of the mean loss.
      key: of its value in evaluations and summaries: `eval_accuracy` for every kind of
        accuracy, else `eval_` and the metric's name. Lines of training have it without
        `eval_`.
      higher_is_better: None where the metric does not say.
    """

    metric: keras.metrics.Metric | None
    key: str
    higher_is_better: bool | None

    def named(self, evaluation: Mapping[str, float]) -> dict[str, float]:
        """Returns what an `EvalStep` found, the metric by its key."""
        found = {"eval_loss": evaluation["eval_loss"]}
        if self.metric is not None:
            return found | {self.key: evaluation["eval_accuracy"]}
        with np.errstate(over="ignore"):
            return found | {self.key: float(np.exp(found["eval_loss"]))}


# Labels, outputs or weights of a batch.
Values: TypeAlias = tf.Tensor | np.ndarray


class _Of(keras.metrics.Metric):
    """A metric of labels and outputs that are changed first.

    Attributes:
      metric: what measures.
    """

    def __init__(self, metric: keras.metrics.Metric) -> None:
        super().__init__(name=metric.name, dtype=metric.dtype)
        self.metric = metric
        self._direction = getattr(metric, "_direction", None)

    def changed(self, labels: Values, outputs: Values) -> tuple[Values, Values]:
        """Returns what the metric takes."""
        raise NotImplementedError

    def update_state(
        self, y_true: Values, y_pred: Values, sample_weight: Values | None = None
    ) -> None:
        """Counts a batch."""
        weights = () if sample_weight is None else (sample_weight,)
        self.metric.update_state(*self.changed(y_true, y_pred), *weights)

    def result(self) -> nests.Nest:
        """Returns the value."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Forgets all batches."""
        self.metric.reset_state()


class InUnits(_Of):
    """A metric of targets in the units of the data, in float64."""

    def __init__(self, metric: keras.metrics.Metric, of: targets.Targets) -> None:
        """Wraps a metric; labels and outputs are standardized."""
        super().__init__(metric)
        self._targets = of

    def changed(self, labels: Values, outputs: Values) -> tuple[Values, Values]:
        """Returns both in units; given are float32 [batch, targets]."""
        return self._targets.in_units(labels), self._targets.in_units(outputs)


class OfShares(_Of):
    """A metric of class numbers for labels that are shares of all classes.

    That of the class with the largest share counts.
    """

    def changed(self, labels: Values, outputs: Values) -> tuple[Values, Values]:
        """Returns class numbers, int64 [batch], of shares, float32 [batch, classes]."""
        return tf.argmax(labels, -1), outputs


class OfProbabilities(_Of):
    """A metric of probabilities, in float32, given what a model says."""

    def __init__(
        self,
        metric: keras.metrics.Metric,
        probabilities: Callable[[Values], Values],
        labels: Callable[[Values], Values],
    ) -> None:
        """Wraps a metric; the functions make its probabilities and its labels."""
        super().__init__(metric)
        self._probabilities, self._labels = probabilities, labels

    def changed(self, labels: Values, outputs: Values) -> tuple[Values, Values]:
        """Returns what they make of labels and of outputs, [batch, classes]."""
        outputs = keras.ops.cast(outputs, "float32")
        return self._labels(labels), self._probabilities(outputs)


def make(name: str, from_logits: bool, source: sources.Source) -> EvaluationMetric:
    """Makes a metric of a task's labels from its Keras identifier.

    Args:
      name: the identifier, or `perplexity`. `accuracy`, `acc`, `crossentropy` and
        `ce` mean what `compile` makes of them for such labels.
      from_logits: whether the model's outputs are logits; a metric that asks is told.
      source: whose labels are class numbers (of examples, tokens or pixels), targets,
        or 0 and 1 of several classes. `mean_iou` is of class numbers of pixels.
        Of the last, metrics get probabilities. `auc` is the mean AUROC of the classes,
        each against all others; see `auc`.

    Raises:
      ValueError: Keras knows no such metric, or it needs arguments.
    """
    if name == names.PERPLEXITY:
        return EvaluationMetric(None, f"eval_{name}", higher_is_better=False)
    identifier = names.metric_identifier(name, source.task)
    if source.task == "segmentation" and identifier in ("MeanIoU", "mean_io_u"):
        # float64: float32 would not count more than 2**24 pixels one by one.
        found = keras.metrics.MeanIoU(
            source.num_classes, "mean_iou", dtype="float64", sparse_y_pred=False
        )
        return EvaluationMetric(found, "eval_mean_iou", higher_is_better=True)
    try:
        found = keras.metrics.get(identifier)
    except TypeError as error:
        raise ValueError(
            f"needs arguments that a flag cannot give ({error})."
        ) from error
    several = source.task == "multilabel"
    dtype = "float64" if source.targets else None
    title = _title(found)
    of_classes = source.task in ("classification", "multilabel")
    if type(found) is keras.metrics.AUC and of_classes:
        found = auc.MeanAuc(source.num_classes, title)
    elif isinstance(found, keras.metrics.Metric):
        taken = inspect.signature(type(found).__init__).parameters
        wanted: dict[str, object] = {"name": title, "dtype": dtype}
        wanted["from_logits"] = from_logits and not several
        if several:  # Keras' defaults are for one class of each example
            wanted |= {"average": "macro", "threshold": 0.5}
        found = type(found)(**{key: wanted[key] for key in wanted if key in taken})
    else:
        found = keras.metrics.MeanMetricWrapper(found, name=title, dtype=dtype)
    if source.targets is not None:
        of = source.targets
        found = InUnits(found, of.around_zero() if _is_of_errors(found, of) else of)
    elif several or isinstance(found, auc.MeanAuc):
        found = _of_probabilities(found, from_logits, source)
    # Keras' own say it: "up" or "down".
    direction = getattr(found, "_direction", None)
    if direction is None and title == "accuracy":
        direction = "up"
    better = {"up": True, "down": False}.get(direction)
    return EvaluationMetric(found, f"eval_{title}", better)


def _title(found: keras.metrics.Metric | Callable[..., tf.Tensor]) -> str:
    """What a metric is called: every accuracy of the first guess `accuracy`."""
    given = getattr(found, "name", None) or found.__name__
    plain = re.sub(r"_\d+$", "", given)  # Keras counts objects: auc_1
    if "top_k" in plain:
        return f"top_{getattr(found, 'k', 5)}_accuracy"
    return "accuracy" if "accuracy" in plain else plain


def _of_probabilities(
    found: keras.metrics.Metric, from_logits: bool, source: sources.Source
) -> OfProbabilities:
    """Gives a metric of several classes what it measures."""
    several = source.task == "multilabel"
    probabilities = keras.ops.sigmoid if several else keras.ops.softmax

    def one_hot(labels: Values) -> tf.Tensor:
        return keras.ops.one_hot(labels, source.num_classes)

    return OfProbabilities(
        found,
        probabilities if from_logits else _unchanged,
        _unchanged if several else one_hot,
    )


def _unchanged(values: Values) -> Values:
    return values


def _is_of_errors(found: keras.metrics.Metric, of: targets.Targets) -> bool:
    """Tells whether a metric stays as it is when labels and outputs move together.

    Keras' R2 subtracts sums of squares, of which a large mean leaves nothing.
    """
    # Whole numbers of both signs, of which each float is exact; [4, targets].
    columns = np.arange(1.0, len(of.names) + 1)
    labels = tf.constant(np.array([[-1.0], [4.0], [-2.0], [8.0]]) * columns)
    outputs = tf.constant(np.array([[2.0], [4.0], [-1.0], [-6.0]]) * columns)
    try:
        values = [
            np.asarray(batch_metrics.of_one_batch(found, labels + by, outputs + by))
            for by in (0.0, 8.0)
        ]
    except Exception:  # A user's metric can raise any type; a trial tells it.
        return False
    return bool(np.isclose(*values, rtol=1e-6, atol=0))
