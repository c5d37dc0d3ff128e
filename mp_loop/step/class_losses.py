"""Cross-entropy of classes with label smoothing and class weights.

    loss = functools.partial(sparse_categorical_crossentropy, label_smoothing=0.1)
    loss(labels, outputs)        # [n], [n, classes] -> [n]

Keras has smoothing for one-hot labels alone, and class weights in `fit` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import keras
import tensorflow as tf

from mp_loop.step import crossentropy

# Of probabilities, as in Keras' cross-entropy.
_SMALLEST = 1e-7


class Arguments(TypedDict, total=False):
    """What a cross-entropy with class numbers is called with besides; see there."""

    from_logits: bool
    ignore_class: int | None
    axis: int
    label_smoothing: float
    class_weights: Sequence[float]


def sparse_categorical_crossentropy(
    labels: tf.Tensor,
    outputs: tf.Tensor,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tf.Tensor:
    """Computes `weight[label] * crossentropy((1 - s) * one_hot(label) + s / classes)`.

    Args:
      labels: class numbers, [...] or [..., 1].
      outputs: float32 [..., classes], logits or probabilities.
      from_logits: which of the two.
      label_smoothing: s, in [0, 1); Szegedy et al. 2016, section 7.
      class_weights: one for each class; none: 1 for all.

    Returns:
      float32 [...].
    """
    labels = tf.reshape(tf.cast(labels, tf.int32), tf.shape(outputs)[:-1])
    losses = keras.losses.sparse_categorical_crossentropy(
        labels, outputs, from_logits=from_logits
    )
    if label_smoothing:
        uniform = -tf.reduce_mean(_log_probabilities(outputs, from_logits), -1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return weighed(losses, labels, class_weights)


def categorical_crossentropy(
    shares: tf.Tensor,
    outputs: tf.Tensor,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tf.Tensor:
    """Computes the mean of the above over classes, each weighing its share of a label.

    Args:
      shares: float32 [..., classes], of sum 1.
      outputs: as above.
      from_logits: as above.
      label_smoothing: as above.
      class_weights: as above.

    Returns:
      float32 [...].
    """
    losses = -_log_probabilities(outputs, from_logits)
    if label_smoothing:
        uniform = tf.reduce_mean(losses, -1, keepdims=True)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    if class_weights:
        losses *= tf.constant(class_weights, tf.float32)
    return tf.reduce_sum(shares * losses, -1)


def _log_probabilities(outputs: tf.Tensor, from_logits: bool) -> tf.Tensor:
    if from_logits:
        return tf.nn.log_softmax(outputs)
    return tf.math.log(tf.clip_by_value(outputs, _SMALLEST, 1 - _SMALLEST))


def of_narrow(
    labels: tf.Tensor, logits: tf.Tensor, arguments: Arguments
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the same of 16-bit logits; see `crossentropy.of_classes`.

    Args:
      labels: as above.
      logits: 16 bits, [..., classes].
      arguments: those above, and Keras' `ignore_class`, where they are given.
    """
    losses, stand_in = crossentropy.of_classes(
        labels,
        logits,
        arguments.get("ignore_class"),
        arguments.get("label_smoothing", 0.0),
    )
    return weighed(losses, labels, arguments.get("class_weights", ())), stand_in


def weighed(
    losses: tf.Tensor, labels: tf.Tensor, class_weights: Sequence[float]
) -> tf.Tensor:
    """Multiplies each loss by the weight of its class, if there are weights.

    Args:
      losses: float32 [...].
      labels: class numbers, of the shape of the losses, or [..., 1].
      class_weights: one for each class, or none.
    """
    if not class_weights:
        return losses
    labels = tf.reshape(tf.cast(labels, tf.int32), tf.shape(losses))
    return losses * tf.gather(tf.constant(class_weights, tf.float32), labels)
