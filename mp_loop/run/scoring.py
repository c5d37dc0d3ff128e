"""What the final weights get right and wrong on the test data: test_results.json.

    found = scoring.of(source, model, batch_size=128)     # None: nothing to tell
    run.write_test_results(found)

A report shows it from the file alone. Its size does not grow with the test data: it
holds counts, and of single examples a few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import keras
import tensorflow as tf

from mp_loop.config import json_values
from mp_loop.data import batching, shown_examples, sources
from mp_loop.models import heads
from mp_loop.run import class_scores, label_scores, mask_scores, target_scores


class Scores(Protocol):
    """What one task counts."""

    @property
    def add(self) -> Callable[..., None]:
        """Counts a batch of labels and outputs, and of weights where there may be some.

        The arrays are as a loss takes them.
        """

    def values(self) -> dict[str, json_values.Json]:
        """Returns what is told of all examples together, `task` first."""

    def shown(self) -> dict[str, list[int]]:
        """Returns lists of the places of single examples by what they are."""

    def example(self, place: int) -> dict[str, json_values.Json]:
        """Returns what is told of a single example."""


def of(
    source: sources.Source,
    model: keras.Model,
    batch_size: int,
    show_examples: bool = True,
) -> dict[str, json_values.Json] | None:
    """Predicts on the test data once, on this process' devices alone.

    Args:
      source: the data.
      model: trained, from what `source.prepare` returns.
      batch_size: examples at once.
      show_examples: whether single examples are told too.

    Returns:
      What test_results.json holds; None of a task that has nothing to tell.
    """
    scores = _scores(source, model)
    if scores is None:
        return None
    batches = batching.evaluation_batches(source, batch_size, raw=True)
    prepare = source.prepare_in_step
    spec, *_ = batches.element_spec

    @tf.function(input_signature=[spec], autograph=False)
    def outputs_of(inputs: tf.Tensor) -> tf.Tensor:
        inputs = inputs if prepare is None else prepare(inputs)
        return tf.cast(model(inputs, training=False), tf.float32)

    for inputs, *others in batches:
        labels, *weights = (values.numpy() for values in others)
        scores.add(labels, outputs_of(inputs).numpy(), *weights)
    found = scores.values()
    for name, places in scores.shown().items():
        found[name] = [
            {
                "index": place,
                **scores.example(place),
                **shown_examples.of(source, source.test, place),
            }
            for place in (places if show_examples else ())
        ]
    return found


def _scores(source: sources.Source, model: keras.Model) -> Scores | None:
    """What counts for the task of a data set."""
    if source.task == "regression":
        return target_scores.TargetScores(source.targets, source.train.labels)
    if source.task == "segmentation":
        return mask_scores.MaskScores(source)
    counted = _OF_CLASSES.get(source.task)
    return counted and counted(source.class_names, heads.from_logits(model))


_OF_CLASSES = {
    "classification": class_scores.ClassScores,
    "multilabel": label_scores.LabelScores,
}
