"""The metric that `--metric` names: what it is called, and which way is better.

found = metric.make("mse", from_logits=True)
found.key                  # "eval_mean_squared_error"
found.higher_is_better     # False
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping

import keras
import numpy as np

from mp_loop.config import names


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


def make(name: str, from_logits: bool) -> EvaluationMetric:
    """Makes a metric of class numbers from its Keras identifier.

    Args:
      name: the identifier, or `perplexity`. `accuracy`, `acc`, `crossentropy` and
        `ce` mean what `compile` makes of them for class numbers.
      from_logits: whether the model's outputs are logits; a metric that asks is told.

    Raises:
      ValueError: Keras knows no such metric, or it needs arguments.
    """
    if name == names.PERPLEXITY:
        return EvaluationMetric(None, f"eval_{name}", higher_is_better=False)
    try:
        found = keras.metrics.get(names.METRIC_ALIASES.get(name, name))
    except TypeError as error:
        raise ValueError(
            f"needs arguments that a flag cannot give ({error})."
        ) from error
    is_object = isinstance(found, keras.metrics.Metric)
    given = found.name if is_object else found.__name__
    plain = re.sub(r"_\d+$", "", given)  # Keras counts objects: auc_1
    title = "accuracy" if "accuracy" in plain else plain
    if is_object:
        taken = inspect.signature(type(found).__init__).parameters
        wanted = {"name": title, "from_logits": from_logits}
        found = type(found)(**{key: wanted[key] for key in wanted if key in taken})
    else:
        found = keras.metrics.MeanMetricWrapper(found, name=title)
    # Keras' own say it: "up" or "down".
    direction = getattr(found, "_direction", None)
    if direction is None and title == "accuracy":
        direction = "up"
    better = {"up": True, "down": False}.get(direction)
    return EvaluationMetric(found, f"eval_{title}", better)
