"""What some rows of a result need of all that it is computed of.

    found = slices.of(items, result, axis, is_product)

For each operation between: rows of its outputs are the same operation of rows of its
inputs, and along which axis; or it is computed as a whole, and cut afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from mp_loop.operations import nodes, planning, rules

_Axes = list[int | None]  # for each operand; None: all of it
# Operations that are told the shape of the result, and by which operand.
_OF_SHAPE = {"BroadcastTo": 1, "Fill": 0, "Reshape": 1}


@dataclasses.dataclass(frozen=True)
class Slices:
    """How a result is computed for some of its rows.

    Attributes:
      whole: items that are computed for all rows, before, in order.
      inside: items that are computed for some, in order.
      entering: what these read: values, each with the axis that has the rows, or None
        where all of it is needed.
      axes: for each value that is computed inside, by its id, the axis that has the
        rows.
    """

    whole: tuple[planning.Item, ...]
    inside: tuple[planning.Item, ...]
    entering: tuple[tuple[nodes.Value, int | None], ...]
    axes: Mapping[int, int]

    def told(self, item: planning.Item) -> tuple[nodes.Value, int] | None:
        """The operand that tells an item its shape, and the place of the rows in it."""
        if not isinstance(item, nodes.Node) or item.type not in _OF_SHAPE:
            return None
        return item.inputs[_OF_SHAPE[item.type]], self.axes[id(item.outputs[0])]


def of(
    items: Sequence[planning.Item],
    result: nodes.Value,
    axis: int,
    must: Callable[[planning.Item], bool],
) -> Slices | None:
    """Finds out what rows of a result need.

    Args:
      items: what it is computed by, in order.
      result: an output of the last.
      axis: of the result; of known size.
      must: whether an item has to be computed row by row.

    Returns:
      None if such an item would have to be computed as a whole.
    """
    size = result.tensor.shape[axis]
    needed: dict[int, int | None] = {id(result): axis}  # inside
    whole_needed: set[int] = set()
    values = {id(result): result}
    whole, inside = [], []
    for item in reversed(items):
        axes = {needed.get(id(x), -1) for x in item.outputs}
        wanted = _wanted(item, needed, size)
        as_whole = whole_needed & {id(x) for x in item.outputs} or None in axes
        if wanted is None or as_whole:
            if must(item):
                return None
            whole.append(item)
            whole_needed |= {id(x) for x in planning.reads(item)}
            continue
        inside.append(item)
        for value, own in wanted:
            values[id(value)] = value
            if needed.setdefault(id(value), own) != own:
                return None  # two readers that need different rows
    made = {id(x) for item in inside for x in item.outputs}
    entering = [
        (values[i], own)
        for i, own in needed.items()
        if i not in made and (own is not None or values[i].constant is None)
    ]
    return Slices(
        tuple(whole[::-1]),
        tuple(inside[::-1]),
        tuple(entering),
        {i: own for i, own in needed.items() if i in made},
    )


def _wanted(
    item: planning.Item, needed: Mapping[int, int | None], size: int
) -> list[tuple[nodes.Value, int | None]] | None:
    """What of its inputs the needed rows of an item's outputs need; None: unknown."""
    if isinstance(item, nodes.Node):
        return _of_node(item, needed, size)
    inner, found = dict(needed), {}
    entering = {id(value) for value in item.inputs}
    for node in reversed(item.nodes):
        if all(inner.get(id(x), -1) is None for x in node.outputs):
            wanted = [(value, None) for value in node.reads]  # as it is
        else:
            wanted = _of_node(node, inner, size)
            if wanted is None or node.type in _OF_SHAPE:
                return None  # its shape is compiled into the region
        for value, axis in wanted:
            if value.constant is not None:
                if axis is not None:
                    return None  # and so are constants
            elif inner.setdefault(id(value), axis) != axis:
                return None
            elif id(value) in entering:
                found[id(value)] = (value, axis)
    return list(found.values())


def _of_node(
    node: nodes.Node, needed: Mapping[int, int | None], size: int
) -> list[tuple[nodes.Value, int | None]] | None:
    if len(node.outputs) != 1 or node.gradient or node.bodies:
        return None
    axis = needed.get(id(node.outputs[0]))
    if axis is None or any(x.tensor.shape.rank is None for x in node.reads):
        return None
    rule = _RULES.get(node.type)
    axes = rule(node, axis) if rule else None
    if axes is None:
        return None
    pairs = list(zip(node.inputs, axes, strict=True))
    known = all(x.tensor.shape[a] == size for x, a in pairs if a is not None)
    return pairs if known else None


def _shape(value: nodes.Value) -> list[int | None]:
    return value.tensor.shape.as_list()


def _number_by_number(node: nodes.Node, axis: int) -> _Axes:
    shape = _shape(node.outputs[0])
    return [_broadcast(value, axis - len(shape)) for value in node.inputs]


def _broadcast(value: nodes.Value, place: int) -> int | None:
    """The axis of an operand at a negative place of the result; None: of one row."""
    shape = _shape(value)
    axis = len(shape) + place
    return None if axis < 0 or shape[axis] == 1 else axis


def _softmax(node: nodes.Node, axis: int) -> _Axes | None:
    return [axis] if axis < len(_shape(node.outputs[0])) - 1 else None


def _reduction(node: nodes.Node, axis: int) -> _Axes | None:
    over = node.inputs[1].constant
    if over is None:
        return None
    rank = len(_shape(node.inputs[0]))
    gone = {int(i) % rank for i in over.reshape(-1)}
    left = [i for i in range(rank) if node.op.get_attr("keep_dims") or i not in gone]
    return [left[axis], None]  # a reduced axis that is kept has one row


def _transpose(node: nodes.Node, axis: int) -> _Axes | None:
    order = node.inputs[1].constant
    return None if order is None else [int(order[axis]), None]


def _expand(node: nodes.Node, axis: int) -> _Axes | None:
    new = node.inputs[1].constant
    if new is None:
        return None
    new = int(new) % len(_shape(node.outputs[0]))
    return None if axis == new else [axis - (axis > new), None]


def _fill(node: nodes.Node, axis: int) -> _Axes:
    return [None, None]


def _broadcast_to(node: nodes.Node, axis: int) -> _Axes:
    return [_broadcast(node.inputs[0], axis - len(_shape(node.outputs[0]))), None]


def _reshape(node: nodes.Node, axis: int) -> _Axes | None:
    """Rows of as many numbers as before, or after as many."""
    taken, made = _shape(node.inputs[0]), _shape(node.outputs[0])
    for i, size in enumerate(taken):
        if size == made[axis] and (
            _same_size(taken[i + 1 :], made[axis + 1 :])
            or _same_size(taken[:i], made[:axis])
        ):
            return [i, None]
    return None


def _same_size(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Whether two shapes are known to hold as many numbers."""
    return None not in (*one, *other) and math.prod(one) == math.prod(other)


def _matrices(node: nodes.Node, axis: int) -> _Axes:
    rank = len(_shape(node.outputs[0]))
    of_batch = node.type != "MatMul"
    flipped = [
        node.op.get_attr(name)
        for name in (("adj_x", "adj_y") if of_batch else ("transpose_a", "transpose_b"))
    ]
    x, y = (len(_shape(value)) for value in node.inputs)
    if axis == rank - 2:
        return [x - 1 if flipped[0] else x - 2, None]
    if axis == rank - 1:
        return [None, y - 2 if flipped[1] else y - 1]
    return [_broadcast(value, axis - rank) for value in node.inputs]


def _einsum(node: nodes.Node, axis: int) -> _Axes | None:
    equation = node.op.get_attr("equation").decode()
    left, _, right = equation.partition("->")
    operands = left.split(",")
    if "." in equation or any(len(set(x)) < len(x) for x in operands):
        return None
    found = [operand.find(right[axis]) for operand in operands]
    return [None if i < 0 else i for i in found]


_RULES: dict[str, Callable[[nodes.Node, int], _Axes | None]] = {
    **dict.fromkeys(rules.NUMBER_BY_NUMBER, _number_by_number),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Max", "Mean", "Min", "Sum"), _reduction),
    **dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "MatMul"), _matrices),
    "BroadcastTo": _broadcast_to,
    "Einsum": _einsum,
    "ExpandDims": _expand,
    "Fill": _fill,
    "Reshape": _reshape,
    "Transpose": _transpose,
}
