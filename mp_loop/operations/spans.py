"""What lies between two products of activations, when it is larger than what enters.

    order = spans.found(graph, plan)

Attention multiplies queries and keys of length T, and gets T x T weights, which it
multiplies with values. Such a *span*, both products and all between them, is run again
in the backward pass: queries, keys and values are kept, and nothing of T x T. It costs
one of the products, and one pass over the weights, once more. Where the weights are
many, it is computed for some of the T rows at a time.

Source: Dao et al. 2022 (arXiv 2205.14135), section 3.1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from mp_loop.operations import blocks, nodes, planning, rules, slices


@dataclasses.dataclass(frozen=True)
class Span:
    """Items of a plan that are run again in the backward pass.

    Attributes:
      items: in order.
      inputs: values that enter, but for constants.
      outputs: values of the last item, which alone leave.
      rows: how it is computed for some of its rows at a time; None: for all.
    """

    items: tuple[planning.Item, ...]
    inputs: tuple[nodes.Value, ...]
    outputs: tuple[nodes.Value, ...]
    rows: Rows | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """How a span is cut.

    Attributes:
      slices: what rows of its result need.
      cut: of the result.
      watched: for each value that enters, whether it has a gradient.
    """

    slices: slices.Slices
    cut: blocks.Cut
    watched: tuple[bool, ...]


def found(graph: nodes.Graph, plan: planning.Plan) -> list[planning.Item | Span]:
    """Returns the order of a plan, with spans in the places of their last products.

    Args:
      graph: a traced call.
      plan: what becomes of it.
    """
    finder = _Finder(graph, plan)
    taken: set[int] = set()
    at_end: dict[int, Span] = {}
    for item in plan.order:
        inside = finder.before(item) if finder.is_product(item) else []
        if inside and not taken & {id(x) for x in (*inside, item)}:
            taken |= {id(x) for x in (*inside, item)}
            at_end[id(item)] = finder.cut(_span([*inside, item]))
    return [
        at_end.get(id(item), item)
        for item in plan.order
        if id(item) in at_end or id(item) not in taken
    ]


def _span(items: Sequence[planning.Item]) -> Span:
    made = {id(value) for item in items for value in item.outputs}
    inputs = {
        id(value): value
        for item in items
        for value in planning.reads(item)
        if id(value) not in made and value.constant is None
    }
    return Span(tuple(items), tuple(inputs.values()), tuple(items[-1].outputs))


class _Finder:
    """Looks for what lies before a product."""

    def __init__(self, graph: nodes.Graph, plan: planning.Plan):
        self._runs, self._kinds, order = plan.runs, plan.kinds, plan.order
        self._graph = graph
        self._place = {id(item): i for i, item in enumerate(order)}
        self._maker = {id(value): item for item in order for value in item.outputs}
        self._readers: dict[int, set[int]] = {
            id(value): {-1} for value in graph.outputs
        }
        for item in order:
            for value in planning.reads(item):
                self._readers.setdefault(id(value), set()).add(id(item))

    @functools.cached_property
    def _differentiable(self) -> set[int]:
        return _differentiable(self._graph)

    def is_product(self, item: planning.Item) -> bool:
        """Whether it multiplies two activations."""
        return (
            isinstance(item, nodes.Node)
            and self._runs[id(item)] is rules.Run.PRODUCT
            and not any(
                self._kinds.get(id(value)) is rules.Kind.WEIGHT for value in item.inputs
            )
        )

    def before(self, last: planning.Item) -> list[planning.Item]:
        """Returns what a span that ends in a product begins with, in order.

        That is what the product alone depends on, back to products that make more
        than they take; nothing if there is none of these.
        """
        inside = {id(last): last}
        while added := {id(item): item for item in self._next(inside)}:
            inside |= added
        growing = [x for x in inside.values() if x is not last and self.is_product(x)]
        del inside[id(last)]
        if not growing:
            return []
        return sorted(inside.values(), key=lambda item: self._place[id(item)])

    def cut(self, span: Span) -> Span:
        """Cuts a span whose weights are at least twice what they are made of."""
        (result,) = span.outputs
        made = max(nodes.size(x.outputs[0]) for x in span.items if self.is_product(x))
        sizes = [nodes.size(value) for value in span.inputs]
        taken = sum(known for unknown, known in sizes if unknown == made[0])
        shape = result.tensor.shape
        if not taken or shape.rank is None:
            return span
        axes = [i for i, size in enumerate(shape) if size is not None and size > 1]
        for axis in sorted(axes, key=lambda i: -shape[i]):  # of T rows, if they can be
            cut = blocks.cut(axis, shape[axis], made[1], taken)
            found = cut and slices.of(span.items, result, axis, self.is_product)
            if found:
                watched = (
                    id(value) in self._differentiable for value, _ in found.entering
                )
                rows = Rows(found, cut, tuple(watched))
                return dataclasses.replace(span, rows=rows)
        return span

    def _next(self, inside: Mapping[int, planning.Item]) -> Iterator[planning.Item]:
        for item in inside.values():
            if self.is_product(item) and len(inside) > 1 and self._grows(item):
                continue  # where a span begins
            for value in planning.reads(item):
                maker = self._maker.get(id(value))
                if maker is None or id(maker) in inside or not self._is_pure(maker):
                    continue
                readers = set().union(
                    *(self._readers.get(id(x), ()) for x in maker.outputs)
                )
                if readers <= set(inside):
                    yield maker

    def _is_pure(self, item: planning.Item) -> bool:
        """Whether it may be run again, and is worth it."""
        if isinstance(item, planning.Region):
            return True
        if item.op.op_def.is_stateful or item.bodies or item.gradient:
            return False
        if self._runs[id(item)] is rules.Run.PRODUCT:
            return self.is_product(item) and self._grows(item)
        return item.type not in rules.PRODUCTS

    def _grows(self, product: planning.Item) -> bool:
        """Whether a product makes more numbers than it takes."""
        made, *taken = map(nodes.size, (product.outputs[0], *product.inputs))
        unknown = max(size[0] for size in taken)
        if made[0] != unknown:
            return made[0] > unknown
        return made[1] >= sum(size[1] for size in taken if size[0] == unknown)


def _differentiable(graph: nodes.Graph) -> set[int]:
    """What is made of numbers with a gradient: masks that are made of integers are not.

    Variables are, and what holds others.
    """
    found = {id(value) for value in graph.inputs if _may_carry(value)}
    for node in graph.nodes:
        holds = (tf.resource, tf.variant)
        if any(id(x) in found or x.tensor.dtype in holds for x in node.reads):
            found |= {id(value) for value in node.outputs if _may_carry(value)}
    return found


def _may_carry(value: nodes.Value) -> bool:
    """Whether a value of its dtype may have a gradient."""
    dtype = value.tensor.dtype
    return not (dtype.is_integer or dtype.is_bool or dtype == tf.string)
