"""What a region makes for a product with a weight alone is made again, and not kept.

    values = remaking.found(plan)

The gradient of the weight needs the other operand, the output of an activation or of a
norm. What enters the region is kept in any case, for the region's own gradient, and
nothing in it is expensive. Several products would each make it again.

Source: Chen et al. 2016 (arXiv 1604.06174), section 4.2: what is cheap is dropped.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from mp_loop.operations import nodes, planning, rules

# What enters may be this many times as large: where the region needs no gradient, it
# is kept instead.
_MOST = 2


def found(plan: planning.Plan) -> frozenset[int]:
    """Finds what is to be made again.

    Args:
      plan: what becomes of a traced call.

    Returns:
      The ids of values, outputs of regions.
    """
    readers: dict[int, list[planning.Item]] = collections.defaultdict(list)
    for item in plan.order:
        for value in planning.reads(item):
            readers[id(value)].append(item)
    return frozenset(
        id(value)
        for item in plan.order
        if isinstance(item, planning.Region)
        for value, rounded in zip(item.outputs, item.rounded, strict=True)
        if rounded and _is_multiplied(value, readers, plan)
        if _is_of_little(item, value, plan)
    )


def _is_multiplied(
    value: nodes.Value,
    readers: Mapping[int, Sequence[planning.Item]],
    plan: planning.Plan,
) -> bool:
    """Whether it is the first operand of a product with a weight, and no more."""
    found = planning.numeric(readers[id(value)])
    if len(found) != 1 or isinstance(found[0], planning.Region):
        return False
    (reader,) = found
    run = plan.runs[id(reader)]
    if reader.type == "Reshape" and run is rules.Run.NARROW:
        return _is_multiplied(reader.outputs[0], readers, plan)
    return (
        run is rules.Run.PRODUCT
        and not reader.inside.compiled
        and reader.inputs[0] is value
        and plan.kinds.get(id(reader.inputs[1])) is rules.Kind.WEIGHT
    )


def _is_of_little(
    region: planning.Region, value: nodes.Value, plan: planning.Plan
) -> bool:
    """Whether little enters a region for what it makes, weights aside."""
    makers = {id(made): node for node in region.nodes for made in node.outputs}
    # Of a reshaped tensor, what is known of its size may be less.
    while id(value) in makers and makers[id(value)].type == "Reshape":
        value = makers[id(value)].inputs[0]
    unknown, made = nodes.size(value)
    entering = [
        nodes.size(value)
        for value in region.inputs
        if plan.kinds.get(id(value)) is not rules.Kind.WEIGHT
    ]
    largest = max(size[0] for size in entering)
    taken = sum(size[1] for size in entering if size[0] == unknown)
    return largest <= unknown and taken <= _MOST * made
