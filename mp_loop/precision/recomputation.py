"""Recomputes activations in the backward pass instead of keeping them.

    forward = Recomputed(twin)
    outputs, losses = forward(inputs)        # inside a tape; as twin(inputs) else

The model is cut where a single tensor passes; masks and such, integers that come
from the model's input, pass beside it. Between cuts nothing is kept: the
backward pass runs a segment forward again, from the tensor that entered it. That
costs about one more forward pass, and leaves the tensors at the cuts and one
segment's worth of activations in memory:

    cuts    = tensors that alone connect what comes before and after
    groups  = neighbours joined such that (cut tensors) + (largest group) is least
    backward of a group, from the last to the first:
        wait for the gradient of its output
        run it again on its input, with the weights and random seeds of the first
        run; what it would write (statistics, seeds) is dropped: written once
        back-propagate

Source: Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost* (arXiv
1604.06174), section 4. `tf.recompute_grad` and `keras.remat` draw new dropout
masks in the second run and move batch-norm statistics twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NoReturn

import keras
import tensorflow as tf
from keras.src.ops.node import Node

from mp_loop.distributed import nests
from mp_loop.operations import again
from mp_loop.precision import copies, recurrent_states


@dataclasses.dataclass(frozen=True)
class Part:
    """What lies between two neighbouring cuts.

    Attributes:
      start: symbolic tensor that enters.
      end: symbolic tensor that leaves.
      size: bytes an example of all tensors that are made, `end` included.
      beside: integer tensors that enter as well, made of the model's input alone.
    """

    start: keras.KerasTensor
    end: keras.KerasTensor
    size: int
    beside: tuple[keras.KerasTensor, ...] = ()


class Recomputed:
    """The training-mode forward pass of a model, activations recomputed."""

    def __init__(self, model: keras.Model):
        """Cuts the model.

        Args:
          model: a functional or Sequential model with one output and not more than
            one input of floats; nested ones are cut as well.

        Raises:
          ValueError: several inputs of floats, several outputs, or nowhere to cut.
        """
        floats = sum(map(_is_float, getattr(model, "inputs", ())))
        if floats > 1 or len(getattr(model, "outputs", ())) != 1:
            raise ValueError(
                "`recompute` (True) needs a functional model with one output and not "
                f"more than one input of floats: {model.name} is none."
            )
        split = parts(model)
        if len(split) < 2:
            raise ValueError(
                f"`recompute` (True) must find a place to cut: nowhere in {model.name} "
                "does a single tensor pass."
            )
        self.segments, self._beside = [], []
        for group in join(split):
            # Each once, in order.
            beside = {id(t): t for part in group for t in part.beside}
            start = group[0].start
            enter = [start, *beside.values()] if beside else start
            self.segments.append(_Segment(enter, group[-1].end))
            self._beside.append(list(beside))
        given = model.inputs if len(model.inputs) == 1 else model.input
        self._start = keras.Model(given, _start(model.inputs))
        made = {id(t): t for part in split for t in part.beside}
        self._made = list(made)
        self._make = keras.Model(given, list(made.values())) if made else None
        self._model = model

    def __call__(self, inputs: nests.Nest) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns the outputs, and the losses that layers added (float32 [])."""
        self._model._clear_losses()
        losses = []
        x = self._start(inputs)
        made = tf.nest.flatten(self._make(inputs)) if self._make else []
        made = dict(zip(self._made, made, strict=True))
        for segment, names in zip(self.segments, self._beside, strict=True):
            # The backward pass of the last comes at once.
            last = segment is self.segments[-1]
            x, loss = (_plain if last or _reads_masters(segment) else self._run)(
                segment, x, [made[name] for name in names]
            )
            losses.append(loss)
        return x, losses

    def _run(
        self, segment: keras.Model, x: tf.Tensor, beside: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        trained = segment.trainable_variables
        known = {id(variable) for variable in trained}
        others = [v for v in _variables(segment) if id(v) not in known]
        before = [tf.identity(variable.value) for variable in others]
        mask = getattr(x, "_keras_mask", None)
        mask_after, written = None, []

        def compute(x: tf.Tensor, weights: Sequence[tf.Tensor]) -> tuple:
            if mask is not None:
                x._keras_mask = mask
            values = zip([*trained, *others], [*weights, *before], strict=True)
            return _pure(segment, x, beside, list(values))

        @tf.custom_gradient
        def run(x: tf.Tensor, *weights: tf.Tensor) -> again.WithGradient:
            nonlocal mask_after, written
            y, loss, after = compute(x, weights)
            mask_after = getattr(y, "_keras_mask", None)
            written = [variable for variable, _ in after]

            def gradient(
                dy: tf.Tensor, dloss: tf.Tensor, *_: tf.Tensor
            ) -> list[tf.Tensor | None]:
                anew = again.after([dy], [x, *weights])
                with tf.GradientTape() as tape:
                    tape.watch([t for t in anew if t.dtype.is_floating])
                    y, loss, _ = compute(anew[0], anew[1:])
                grads = tape.gradient([y, loss], anew, [dy, dloss])
                # A custom gradient must be a tensor, also where it was sparse.
                return [
                    g if g is None else _first_order(tf.convert_to_tensor(g))
                    for g in grads
                ]

            return (y, loss, *(value for _, value in after)), gradient

        y, loss, *values = run(x, *(tf.identity(v.value) for v in trained))
        for variable, value in zip(written, values, strict=True):
            variable.assign(value)
        if mask_after is not None:
            y._keras_mask = mask_after
        return y, loss


class _Segment(keras.Model):
    """A functional model that takes tensors in the dtype that they have."""

    def _convert_inputs_to_tensors(
        self, flat_inputs: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        return flat_inputs


def _plain(
    segment: keras.Model, x: tf.Tensor, beside: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Calls a segment as it is."""
    y, loss, after = _pure(segment, x, beside, ())
    for variable, value in after:
        variable.assign(value)
    return y, loss


Values = Sequence[tuple[keras.Variable, tf.Tensor]]


def _pure(
    segment: keras.Model, x: tf.Tensor, beside: Sequence[tf.Tensor], values: Values
) -> tuple[tf.Tensor, tf.Tensor, Values]:
    """Calls a segment on given values of its variables, and writes to none.

    Returns:
      Its output; the sum of the losses that its layers added, float32 []; and what
      it would have written to its variables.
    """
    before = {id(variable): value for variable, value in values}
    with keras.StatelessScope(values, collect_losses=True) as scope:
        # Not the layer's `__call__`, which warns of the masks that `call` passes on.
        y = segment.call([x, *beside] if beside else x, training=True)
    losses = [tf.cast(loss, tf.float32) for loss in scope.losses]
    after = [(v, scope.get_current_value(v)) for v in _variables(segment)]
    written = [
        (v, value)
        for v, value in after
        if value is not None and value is not before.get(id(v))
    ]
    return y, tf.add_n([tf.zeros([]), *losses]), written


def _variables(segment: keras.Model) -> list[keras.Variable]:
    return [*segment.variables, *recurrent_states.of(segment)]


@tf.custom_gradient
def _first_order(grad: tf.Tensor) -> again.WithGradient:
    def refuse(*_: tf.Tensor) -> NoReturn:
        raise NotImplementedError(
            "`recompute` (True) must not be used where gradients are differentiated "
            "again, as in a gradient penalty."
        )

    return tf.identity(grad), refuse


def _reads_masters(segment: keras.Model) -> bool:
    """Tells whether a layer of a segment does."""
    return any(map(copies.reads_masters, segment._flatten_layers()))


def parts(model: keras.Model, nested: bool = False) -> list[Part]:
    """Splits a model wherever a single tensor connects what comes before and after.

    Args:
      model: a functional or Sequential model with one output and not more than one
        input of floats. A model nested in it, with one input, is split as well.
      nested: whether it is such a one; integers then count as other tensors.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    by_depth = graph._nodes_by_depth
    nodes = [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]
    free = set() if nested else _free(graph.inputs, nodes)
    nodes = [
        node for node in nodes if not node.is_input and not _made_of(node.outputs, free)
    ]
    last_use = {
        id(tensor): i for i, node in enumerate(nodes) for tensor in node.input_tensors
    }
    last_use[id(graph.outputs[0])] = len(nodes)
    found: list[Part] = []
    start, inside = _start(graph.inputs), []
    live = {id(start)} - free
    for i, node in enumerate(nodes):
        inside.append(node)
        live |= {id(tensor) for tensor in node.outputs}
        live = {tensor for tensor in live if last_use.get(tensor, -1) > i}
        if len(live) > 1 or id(node.outputs[0]) not in live:
            continue
        end = node.outputs[0]
        inner = node.operation
        entered = hasattr(inner, "_nodes_by_depth") and len(inner.inputs) == 1
        if len(inside) == 1 and entered:
            found += parts(inner, nested=True)
        else:
            size = sum(_size(t) * _layers(n) for n in inside for t in n.outputs)
            beside = {
                id(t): t for n in inside for t in n.input_tensors if id(t) in free
            }
            beside.pop(id(start), None)
            found.append(Part(start, end, size, tuple(beside.values())))
        start, inside = end, []
    return found


def _start(inputs: Sequence[keras.KerasTensor]) -> keras.KerasTensor:
    """The input that goes from segment to segment: the floats, if there are any."""
    return next(filter(_is_float, inputs), inputs[0])


def _free(inputs: Sequence[keras.KerasTensor], nodes: Sequence[Node]) -> set[int]:
    """Ids of the integer tensors that are made of integer inputs without detour."""
    free = {id(tensor) for tensor in inputs if not _is_float(tensor)}
    for node in nodes:
        of_integers = not node.is_input and _made_of(node.input_tensors, free)
        if of_integers and not any(map(_is_float, node.outputs)):
            free |= {id(tensor) for tensor in node.outputs}
    return free


def _made_of(tensors: Sequence[keras.KerasTensor], free: set[int]) -> bool:
    return bool(tensors) and all(id(tensor) in free for tensor in tensors)


def _is_float(tensor: keras.KerasTensor) -> bool:
    return tf.as_dtype(tensor.dtype).is_floating


def _layers(node: Node) -> int:
    """How many layers a node runs: each keeps about one tensor of its own."""
    flatten = getattr(node.operation, "_flatten_layers", None)
    return len(list(flatten())) if flatten else 1


def _size(tensor: keras.KerasTensor) -> int:
    """Bytes of one example; an unknown length counts as 1."""
    numbers = math.prod(length or 1 for length in tensor.shape[1:])
    return numbers * tf.as_dtype(tensor.dtype).size


def join(split: Sequence[Part]) -> list[list[Part]]:
    """Joins neighbours so that cut tensors and the largest group take least memory.

    Args:
      split: two parts or more.

    Returns:
      Two groups or more.
    """

    def cost(groups: list[list[Part]]) -> int:
        kept = sum(_size(group[0].start) for group in groups)
        return kept + max(sum(part.size for part in group) for group in groups)

    limits = {
        sum(part.size for part in split[i:j])
        for i in range(len(split))
        for j in range(i + 1, len(split) + 1)
    }
    groupings = (_joined(split, limit) for limit in sorted(limits))
    return min((groups for groups in groupings if len(groups) > 1), key=cost)


def _joined(split: Sequence[Part], limit: int) -> list[list[Part]]:
    """Joins from the left as long as a group stays within the limit."""
    groups: list[list[Part]] = []
    for part in split:
        connected = groups and groups[-1][-1].end is part.start
        if connected and sum(p.size for p in [*groups[-1], part]) <= limit:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups
