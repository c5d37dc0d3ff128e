"""The loss of a batch, as `compile` takes it.

    loss = losses.of({"price": "mse", "kind": my_function}, {"price": 0.5})
    loss(labels, outputs, sample_weight)              # float32 []

Labels of shape [n] fit outputs of shape [n, 1], as in Keras' own wrapper of loss
functions; other shapes that do not fit are refused before numbers are broadcast.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import keras
import tensorflow as tf

from mp_loop.distributed import nests, replicas
from mp_loop.step import autograph, class_losses, crossentropy, gradients

# Of (labels, outputs, sample_weight), float32 [].
Loss: TypeAlias = Callable[..., tf.Tensor]

# What a user gives: a loss, and what it is multiplied by; or one for each output.
LossLike: TypeAlias = str | keras.losses.Loss | Callable[..., tf.Tensor] | None
LossesLike: TypeAlias = LossLike | Mapping[str, LossLike] | Sequence[LossLike]
LossWeights: TypeAlias = float | None | Mapping[str, float] | Sequence[float | None]

_Each = TypeVar("_Each")

# Keras' losses whose labels are class numbers or sequences of them: their shape is
# not that of the outputs.
_OF_CLASS_NUMBERS = (
    "categorical_generalized_cross_entropy",
    "circle",
    "ctc",
    "sparse_categorical_crossentropy",
)


def of(
    loss: LossesLike,
    loss_weights: LossWeights = None,
    names: Sequence[str] | None = None,
) -> Loss | None:
    """Makes the mean loss of a batch of what a user gave.

    Args:
      loss: Keras identifier, `keras.losses.Loss`, or function of (labels, outputs)
        that returns losses to be averaged; or a dict (by output) or list of such,
        None for an output without a loss. A loss of Keras' own is that of each
        output; your own gets all outputs at once.
      loss_weights: what the loss of each output is multiplied by: a number, or a dict
        or list as `loss`.
      names: of the outputs, where the model returns a list of them.

    Returns:
      A function of labels, outputs and sample weights (float32 [batch], None, or one
      for each output); None if there is no loss.

    Raises:
      ValueError: `loss` is none of these. When called: labels, outputs, losses and
        weights do not fit together.
    """
    if loss is None:
        return None
    if isinstance(loss, dict | list | tuple):
        single = keras.tree.map_structure(_single, loss)
    else:
        single = _single(loss)
        if not _is_keras(single.given) and loss_weights is None:
            return single
    return ByOutput(single, loss_weights, names)


@dataclasses.dataclass(frozen=True)
class ByOutput(Generic[_Each]):
    """The weighted sum of the losses of a model's outputs, or what else each has.

    Attributes:
      losses: of each output; see `of`.
      loss_weights: likewise.
      names: of the outputs, where the model returns a list of them.
      argument: what the losses are called in errors.
    """

    losses: _Each | None | Mapping[str, _Each | None] | Sequence[_Each | None]
    loss_weights: LossWeights
    names: Sequence[str] | None
    argument: str = "loss"

    def __call__(
        self: ByOutput[Single],
        labels: nests.Nest,
        outputs: nests.Nest,
        sample_weight: nests.Nest = None,
    ) -> tf.Tensor:
        """Returns the sum, float32 []."""
        total = tf.constant(0.0)
        rows = self.by_output(labels, outputs, sample_weight)
        for output, loss, factor, label, weight in rows:
            if loss is None:
                continue
            value = loss(label, output, weight)
            total += value if factor is None else value * factor
        return total

    def by_output(
        self, labels: nests.Nest, outputs: nests.Nest, sample_weight: nests.Nest = None
    ) -> Iterator[
        tuple[nests.Nest, _Each | None, float | None, nests.Nest, nests.Nest]
    ]:
        """Yields each output with its loss, loss weight, labels and sample weight.

        Raises:
          ValueError: they do not fit together.
        """
        names = self.names
        if isinstance(outputs, dict):
            names, outputs = list(outputs), list(outputs.values())
        elif isinstance(outputs, list | tuple):
            names = names if names and len(names) == len(outputs) else None
        else:
            outputs = [outputs]
        count = len(outputs)
        names = list(names or range(count))[:count]
        given = {
            self.argument: self.losses,
            "loss_weights": self.loss_weights,
            "labels": labels if count > 1 or isinstance(labels, dict) else [labels],
            "sample_weight": sample_weight,
        }
        columns = [
            _one_each(argument, value, names) for argument, value in given.items()
        ]
        return zip(outputs, *columns, strict=True)


def takes_narrow(loss: LossLike) -> bool:
    """Tells whether a single loss takes logits of 16 bits as they are."""
    return Single(loss).takes_narrow


def check_classes(
    loss: Loss | None, labels: nests.Nest, outputs: nests.Nest
) -> list[tf.Operation]:
    """Makes the checks of labels that must be class numbers.

    Without them a label out of range is an error in mid-step on a processor, when
    statistics may have moved, and NaN elsewhere.

    Args:
      loss: what `of` returned.
      labels: of a batch.
      outputs: what has the shapes of the model's outputs, in their structure.

    Returns:
      Operations that raise InvalidArgumentError, to be waited for; none for a loss of
      your own.
    """
    if isinstance(loss, ByOutput):
        rows = loss.by_output(labels, outputs)
        triples = [(single, label, output) for output, single, _, label, _ in rows]
    elif isinstance(loss, Single):
        triples = [(loss, labels, outputs)]
    else:
        return []
    return [
        check
        for single, label, output in triples
        if single is not None and hasattr(output, "shape")
        for check in single.check_classes(label, output.shape)
    ]


def _one_each(
    argument: str,
    value: object,
    names: Sequence[str | int],
) -> list[object]:
    """Returns what belongs to each output: by name, by place, or the same for all."""
    if isinstance(value, dict):
        if set(value) - set(names):
            raise ValueError(
                f"`{argument}` ({', '.join(map(str, value))}) must be for outputs of "
                f"the model: {', '.join(map(str, names))}."
            )
        return [value.get(name) for name in names]
    if not isinstance(value, list | tuple):
        return [value] * len(names)
    if len(value) != len(names):
        raise ValueError(
            f"`{argument}` ({len(value)} items) must have one item for each of the "
            f"model's {len(names)} outputs."
        )
    return list(value)


def _is_keras(loss: object) -> bool:
    """Tells whether a loss, a function or an object, is Keras' own or like it."""
    module = getattr(_function(loss), "__module__", None) or ""
    return module.startswith("keras.") or module == class_losses.__name__


def _single(given: LossLike) -> Single | None:
    return None if given is None else Single(given)


class _Weighed(keras.losses.Loss):
    """Masks, weighs and averages losses as Keras' wrapper of a function does."""

    def call(self, losses: tf.Tensor, outputs: nests.Nest) -> tf.Tensor:
        del outputs  # the caller reads their mask
        return losses


class Single:
    """One loss, of one output or of all at once.

    Attributes:
      given: what the user gave, an identifier resolved.
      takes_narrow: whether it takes logits of 16 bits as they are; see `crossentropy`.
    """

    def __init__(self, given: LossLike):
        """Resolves an identifier.

        Raises:
          ValueError: it is not a loss.
        """
        self.given = keras.losses.get(given)
        self._function = autograph.convert(self.given)
        self._classes = _arguments_of_classes(self.given)
        self.takes_narrow = _takes_narrow(self.given, self._classes)
        self._weighed = _Weighed(name="loss")
        if self.takes_narrow:
            reduction = getattr(self.given, "reduction", self._weighed.reduction)
            self._weighed = _Weighed(name="loss", reduction=reduction)

    def __call__(
        self, labels: nests.Nest, outputs: nests.Nest, sample_weight: nests.Nest = None
    ) -> tf.Tensor:
        """Returns the mean loss, float32 [].

        Raises:
          ValueError: labels and outputs of one of Keras' losses do not fit.
        """
        with replicas.as_one_device():
            if self.takes_narrow and crossentropy.fits(labels, outputs):
                losses, outputs = class_losses.of_narrow(labels, outputs, self._classes)
            else:
                outputs = gradients.outputs_in_float32(outputs)
                self._check(labels, outputs)
                if isinstance(self.given, keras.losses.Loss):
                    loss = self._function(labels, outputs, sample_weight=sample_weight)
                    return tf.reduce_mean(tf.cast(loss, tf.float32))  # of "none"
                losses = self._losses(*_same_ranks(labels, outputs))
                losses = tf.cast(losses, tf.float32)
            masked = any(hasattr(x, "_keras_mask") for x in (losses, outputs))
            reduced = self._weighed.reduction != "sum_over_batch_size"
            if masked or sample_weight is not None or reduced:
                losses = self._weighed(losses, outputs, sample_weight=sample_weight)
        return tf.reduce_mean(tf.cast(losses, tf.float32))

    def check_classes(
        self, labels: nests.Nest, shape: tf.TensorShape | tuple[int | None, ...]
    ) -> list[tf.Operation]:
        """Returns the checks of this loss; none if its labels are no class numbers."""
        arguments = self._classes
        if arguments is None or labels is None or not tf.is_tensor(labels):
            return []
        count = shape[arguments.get("axis", -1)]
        if count is None:
            return []
        ends = [tf.reduce_min(labels), tf.reduce_max(labels)]
        inside = (labels >= 0) & (labels < count)
        if arguments.get("ignore_class") is not None:
            inside |= labels == tf.cast(arguments["ignore_class"], labels.dtype)
        # Integers, for which an assertion needs no branch.
        smallest, largest = (tf.cast(end, tf.int32) for end in ends)
        message = f"`labels` must be class numbers from 0 to {count - 1}; they are from"
        check = tf.debugging.Assert(
            tf.reduce_all(inside), [message, smallest, "to", largest]
        )
        return [] if check is None else [check]

    def _losses(self, labels: nests.Nest, outputs: nests.Nest) -> tf.Tensor:
        """Calls a function, with integer labels as float32 only if it needs them so.

        Keras casts all labels to float32, which rounds large integers and leaves none
        to a function that looks something up by them.
        """
        try:
            return self._function(labels, outputs)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError):
            if not any(map(_is_integer, keras.tree.flatten(labels))):
                raise
            as_float32 = keras.tree.map_structure(
                lambda x: tf.cast(x, tf.float32) if _is_integer(x) else x, labels
            )
            return self._function(as_float32, outputs)

    def _check(self, labels: nests.Nest, outputs: nests.Nest) -> None:
        """Refuses labels that one of Keras' losses would broadcast against outputs."""
        function = _function(getattr(self.given, "fn", self.given))
        name = getattr(function, "__name__", type(function).__name__)
        nested = tf.nest.is_nested(labels) or tf.nest.is_nested(outputs)
        if not _is_keras(function) or name in _OF_CLASS_NUMBERS or nested:
            return
        same = _same_ranks(labels, outputs)
        if not all(isinstance(x, tf.Tensor) for x in same):
            return  # sparse, ragged or none
        if not same[0].shape.is_compatible_with(same[1].shape):
            raise ValueError(
                f"`loss` ({name}): labels of shape {_tensor(labels).shape} do not fit "
                f"outputs of shape {_tensor(outputs).shape}. For class numbers use "
                "sparse_categorical_crossentropy."
            )


def _function(loss: object) -> object:
    """The function behind its partial applications."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def _arguments_of_classes(loss: object) -> class_losses.Arguments | None:
    """The arguments of a cross-entropy with class numbers; None of other losses."""
    function = _function(getattr(loss, "fn", loss))
    ours = class_losses.sparse_categorical_crossentropy
    if function not in (keras.losses.sparse_categorical_crossentropy, ours):
        return None
    return getattr(loss, "_fn_kwargs", getattr(loss, "keywords", {}))


def _takes_narrow(loss: object, arguments: class_losses.Arguments | None) -> bool:
    return (
        arguments is not None
        and _is_keras(loss)
        and bool(arguments.get("from_logits"))
        and arguments.get("axis", -1) == -1
        and getattr(loss, "dtype", "float32") == "float32"
    )


def _is_integer(labels: nests.Nest) -> bool:
    return isinstance(labels, tf.Tensor) and labels.dtype.is_integer


def _same_ranks(
    labels: nests.Nest, outputs: nests.Nest
) -> tuple[nests.Nest, nests.Nest]:
    """Gives labels and outputs of equal structure equal ranks, as Keras' wrapper does.

    Floats are cast to float32.
    """
    labels, outputs = (
        keras.tree.map_structure(_tensor, one) for one in (labels, outputs)
    )
    try:
        keras.tree.assert_same_structure(labels, outputs)
    except ValueError:
        return labels, outputs
    pairs = zip(*map(keras.tree.flatten, (labels, outputs)), strict=True)
    columns = zip(*(_same_rank(label, output) for label, output in pairs), strict=True)
    ours, theirs = (keras.tree.pack_sequence_as(outputs, list(c)) for c in columns)
    return ours, theirs


def _tensor(x: nests.Nest) -> nests.Nest:
    if x is None or (tf.is_tensor(x) and not isinstance(x, tf.Tensor)):
        return x  # sparse or ragged
    x = tf.convert_to_tensor(x)
    return tf.cast(x, tf.float32) if x.dtype.is_floating else x


def _same_rank(one: nests.Nest, other: nests.Nest) -> tuple[nests.Nest, nests.Nest]:
    """Adds a last axis of 1 to a vector, or takes one off, as Keras does."""
    if not isinstance(one, tf.Tensor) or not isinstance(other, tf.Tensor):
        return one, other
    ranks = [x.shape.rank for x in (one, other)]
    if None in ranks or abs(ranks[0] - ranks[1]) != 1:
        return one, other
    if ranks[0] < ranks[1]:
        return tuple(reversed(_same_rank(other, one)))
    if one.shape[-1] != 1:
        return one, other
    if ranks[1] == 1:
        return one, other[:, tf.newaxis]
    return tf.squeeze(one, -1), other
