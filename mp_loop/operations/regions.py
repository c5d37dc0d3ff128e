"""Float32 operations between 16-bit tensors, run as one and run again backward.

    outputs = regions.run(program.of_region(region), inputs, compiled=True)

Only what enters is kept for the backward pass, which runs the operations again from
there. XLA makes few loops of them, forward and backward. Equal regions, those of the
layers of a Transformer say, are compiled once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import tensorflow as tf

from mp_loop.operations import again, differentiation, nodes, planning, raw


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant of a program, as something that can be compared."""

    dtype: tf.DType
    shape: tuple[int, ...]
    data: bytes

    def tensor(self) -> tf.Tensor:
        """Makes it."""
        array = np.frombuffer(self.data, self.dtype.as_numpy_dtype)
        return tf.constant(array.reshape(self.shape), self.dtype)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One operation.

    Attributes:
      type: of the operation.
      operands: places of earlier values, or constants.
      sizes: as `raw.call` takes them.
      attributes: as `raw.call` takes them.
      gradient: its own gradient function, of the gradients of its outputs and of
        what it `captured`, if it has one; it then passes its operands on.
      captured: places of earlier values, or constants.
      differentiated: for each operand, whether that function has a gradient of it.
    """

    type: str
    operands: tuple[int | Constant, ...]
    sizes: tuple[int, ...]
    attributes: tuple[tuple[str, Hashable], ...]
    gradient: Program | None = None
    captured: tuple[int | Constant, ...] = ()
    differentiated: tuple[bool, ...] = ()

    def __call__(self, made: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Runs it on earlier values."""
        operands = _all_of(self.operands, made)
        if self.gradient:
            captured = _all_of(self.captured, made)
            return passed_on(
                operands,
                self.differentiated,
                lambda grads: self.gradient([*grads, *captured]),
            )
        op_def = raw.op_def(self.type)
        return raw.call(op_def, operands, self.sizes, dict(self.attributes))


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of tensors that can be compared with others.

    Attributes:
      inputs: how many tensors enter; they have the first places.
      instructions: each appends what it makes.
      outputs: places of what it returns.
      rounded: for each output, whether it is rounded to 16 bits.
      narrow: the dtype of 16 bits.
    """

    inputs: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    rounded: tuple[bool, ...]
    narrow: tf.DType

    def __call__(self, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Runs it on floats of 16 bits or float32, as float32."""
        made = [tf.cast(x, tf.float32) if x.dtype == self.narrow else x for x in inputs]
        for instruction in self.instructions:
            made += instruction(made)
        pairs = zip(self.outputs, self.rounded, strict=True)
        return [tf.cast(made[i], self.narrow) if r else made[i] for i, r in pairs]


def _all_of(
    places: Sequence[int | Constant], made: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    return [x.tensor() if isinstance(x, Constant) else made[x] for x in places]


def program(region: planning.Region, narrow: tf.DType) -> Program:
    """Writes a region down."""
    return _program(region.nodes, region.inputs, region.outputs, region.rounded, narrow)


def _program(
    of: Sequence[nodes.Node],
    inputs: Sequence[nodes.Value],
    outputs: Sequence[nodes.Value],
    rounded: tuple[bool, ...],
    narrow: tf.DType,
) -> Program:
    place = {id(value): i for i, value in enumerate(inputs)}

    def places(values: Sequence[nodes.Value]) -> tuple[int | Constant, ...]:
        return tuple(
            place[id(value)] if value.constant is None else _constant(value.constant)
            for value in values
        )

    instructions = []
    for node in of:
        if node.type == "Const":
            continue
        own, gradient, captured = node.gradient, None, ()
        if own:
            graph, returned = own.graph, own.graph.outputs
            gradient = _program(
                graph.nodes, graph.inputs, returned, (False,) * len(returned), narrow
            )
            captured = places(own.captured)
        instructions.append(
            Instruction(
                node.type,
                places(node.inputs),
                raw.sizes(node.op),
                () if own else tuple(raw.attributes(node.op).items()),
                gradient,
                captured,
                tuple(own.found) if own else (),
            )
        )
        for value in node.outputs:
            place[id(value)] = len(place)
    returned = tuple(place[id(value)] for value in outputs)
    return Program(len(inputs), tuple(instructions), returned, rounded, narrow)


def _constant(value: np.ndarray) -> Constant:
    return Constant(tf.as_dtype(value.dtype), value.shape, value.tobytes())


def run(
    of_region: Program, inputs: Sequence[tf.Tensor], compiled: bool
) -> list[tf.Tensor]:
    """Runs a region; backward, from its inputs again.

    Args:
      of_region: what it computes.
      inputs: what enters, floats of 16 bits or float32.
      compiled: whether XLA compiles it.
    """
    forward, backward = _compiled(of_region) if compiled else _plain(of_region)

    @differentiation.custom_gradient
    def compute(*inputs: tf.Tensor) -> again.WithGradient:
        def gradient(*grads: tf.Tensor) -> list[tf.Tensor | None]:
            found = backward(again.after(grads, inputs), list(grads))
            floats = [i for i, x in enumerate(inputs) if x.dtype.is_floating]
            given = dict(zip(floats, found, strict=True))
            return [given.get(i) for i in range(len(inputs))]

        return tuple(forward(list(inputs))), gradient

    return tf.nest.flatten(compute(*inputs))


def remake(
    of_region: Program, place: int, inputs: Sequence[tf.Tensor], compiled: bool
) -> again.Remake:
    """Returns what makes an output of a region a second time, of what entered.

    Args:
      of_region: what it computes.
      place: of the output among others.
      inputs: as `run` takes them.
      compiled: likewise.
    """
    of_one = dataclasses.replace(
        of_region,
        outputs=(of_region.outputs[place],),
        rounded=(of_region.rounded[place],),
    )
    forward, _ = _compiled(of_one) if compiled else _plain(of_one)
    return lambda these: forward(again.after(these, inputs))[0]


def passed_on(
    tensors: Sequence[tf.Tensor],
    differentiated: Sequence[bool],
    gradients: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
) -> list[tf.Tensor]:
    """Returns tensors as they are, with a gradient of one's own.

    Args:
      tensors: any.
      differentiated: for each of them, whether it has a gradient.
      gradients: of those that have one, from the gradients of what is returned.
    """

    @differentiation.custom_gradient
    def compute(*tensors: tf.Tensor) -> again.WithGradient:
        def gradient(*grads: tf.Tensor) -> list[tf.Tensor | None]:
            found = iter(gradients(grads))
            pairs = zip(differentiated, tensors, strict=True)
            return [tf.cast(next(found), x.dtype) if has else None for has, x in pairs]

        return tuple(tf.identity(x) for x in tensors), gradient

    return tf.nest.flatten(compute(*tensors))


Forward = Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]
Backward = Callable[[Sequence[tf.Tensor], Sequence[tf.Tensor]], list[tf.Tensor]]


def _plain(of_region: Program) -> tuple[Forward, Backward]:
    def backward(
        inputs: Sequence[tf.Tensor], grads: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        floats = [x for x in inputs if x.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            outputs = of_region(inputs)
        pairs = [
            (y, dy) for y, dy in zip(outputs, grads, strict=True) if y.dtype.is_floating
        ]
        found = tape.gradient(
            [y for y, _ in pairs],
            floats,
            [dy for _, dy in pairs],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.cast(g, x.dtype) for g, x in zip(found, floats, strict=True)]

    return of_region, backward


@functools.cache
def _compiled(of_region: Program) -> tuple[Forward, Backward]:
    forward, backward = _plain(of_region)

    def call(inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return forward(inputs)

    return (
        tf.function(call, jit_compile=True, autograph=False),
        tf.function(backward, jit_compile=True, autograph=False),
    )
