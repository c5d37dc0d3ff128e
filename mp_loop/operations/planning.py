"""How every node of a traced call runs, and which of them make a region.

    plan = planning.plan(graph, kinds, tf.float16)

A *region* is a connected group of float32 operations between 16-bit tensors: a norm,
an activation, a softmax with its mask. It holds no product, so that it is cheap to run
again, and keeps only what enters it for the backward pass.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from mp_loop.operations import nodes, rules

# Pure operations that XLA makes loops of.
_LOOPS = """
    BiasAdd BroadcastTo ConcatV2 ExpandDims L2Loss LogSoftmax Max Mean Min Pack Pad
    Reshape Select Slice Softmax Split SplitV Squeeze StridedSlice Sum Tile Transpose
    Unpack
"""
_IN_REGIONS = rules.NUMBER_BY_NUMBER | frozenset(_LOOPS.split())
# Cheap, number by number.
_DRAWN = frozenset({"Abs", "Add", "AddV2", "BiasAdd", "Mul", "Neg", "RealDiv", "Sub"})
# What sorts or adds nothing: alone, a region of these would save nothing.
_FREE = rules.MOVES | {"Cast", "ConcatV2", "Pack", "Select", "SelectV2"}


@dataclasses.dataclass(frozen=True)
class Region:
    """Float32 operations that are run, and run again, as one.

    Attributes:
      nodes: in order.
      inputs: values that enter; constants are part of it.
      outputs: values that are used elsewhere.
      rounded: for each output, whether it is used in 16 bits alone.
    """

    nodes: tuple[nodes.Node, ...]
    inputs: tuple[nodes.Value, ...]
    outputs: tuple[nodes.Value, ...]
    rounded: tuple[bool, ...]


Item = nodes.Node | Region  # what is emitted, or run again, as one


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of a traced call.

    Attributes:
      runs: for each node by its id, how it runs.
      kinds: for each float32 value by its id, what becomes of it.
      order: what is emitted, one after the other: nodes and regions.
    """

    runs: Mapping[int, rules.Run]
    kinds: Mapping[int, rules.Kind]
    order: Sequence[Item]

    @property
    def gains(self) -> bool:
        """Whether anything runs in 16 bits, or is run again in the backward pass."""
        return any(map(self._gains, self.order))

    def _gains(self, item: Item) -> bool:
        if isinstance(item, Region):
            return len(item.nodes) > 1
        if item.bodies:
            return bool(rules.PRODUCTS & item.types())
        return self.runs[id(item)] is not rules.Run.FLOAT32


def plan(
    graph: nodes.Graph,
    kinds: Mapping[int, rules.Kind],
    narrow: tf.DType,
    float32_scopes: frozenset[str] = frozenset(),
) -> Plan:
    """Decides on dtypes, node by node, and finds regions.

    Args:
      graph: a traced call.
      kinds: of its float32 inputs, by id.
      narrow: tf.float16 or tf.bfloat16.
      float32_scopes: name scopes whose operations stay in float32.
    """
    runs, kinds = {}, dict(kinds)
    for node in graph.nodes:
        found = [kinds[id(value)] for value in node.inputs if value.is_float32]
        runs[id(node)], kind = rules.decide(node, found)
        if node.is_in(float32_scopes):
            runs[id(node)], kind = rules.Run.FLOAT32, rules.Kind.FLOAT32
        for i, value in enumerate(node.outputs):
            if not value.is_float32:
                continue
            kinds[id(value)] = kind
            if value.constant is not None:
                kinds[id(value)] = rules.kind_of_constant(value.constant, narrow)
            elif value.variable is not None and value.variable.trainable:
                kinds[id(value)] = rules.Kind.WEIGHT
            elif node.type == "IdentityN":  # each operand for itself
                kinds[id(value)] = kinds[id(node.inputs[i])]
    uses = _uses(graph)
    _draw_into_regions(graph, uses, runs, kinds)
    _round_before_reshapes(graph, uses, runs, kinds)
    return Plan(runs, kinds, _in_order(graph, uses, runs, kinds))


def reads(item: Item) -> Sequence[nodes.Value]:
    """What an item of a plan takes."""
    return item.inputs if isinstance(item, Region) else item.reads


def read_in_float32(graph: nodes.Graph, plan: Plan) -> set[int]:
    """Finds the variables that something reads in float32, or not as a whole.

    Args:
      graph: a traced call.
      plan: of it.

    Returns:
      The ids of those variables; all others can as well be stored in 16 bits.
    """
    uses, found = _uses(graph), set()
    returned = {id(value) for value in graph.outputs}

    def is_rounded(value: nodes.Value) -> bool:
        if id(value) in returned:
            return False
        return all(
            all(map(is_rounded, node.outputs))
            if node.type in rules.MOVES
            else plan.runs[id(node)] is not rules.Run.FLOAT32
            for node in uses[id(value)]
        )

    for node in graph.nodes:
        for value in node.inputs:
            if value.variable is None or value.tensor.dtype != tf.resource:
                continue
            whole = node.type == "ReadVariableOp"
            if not whole or not is_rounded(node.outputs[0]):
                found.add(id(value.variable))
    return found


def _draw_into_regions(
    graph: nodes.Graph,
    uses: Mapping[int, Sequence[nodes.Node]],
    runs: dict[int, rules.Run],
    kinds: dict[int, rules.Kind],
) -> None:
    """Lets what regions alone read be a part of them, as float32, and not be kept."""
    returned = {id(value) for value in graph.outputs}
    for node in reversed(graph.nodes):
        values = {id(value) for value in node.outputs}
        readers = [reader for i in values for reader in uses[i]]
        if (
            runs[id(node)] is rules.Run.NARROW
            and node.type in _DRAWN
            and not values & returned
            and all(_may_be_inside(reader, runs) for reader in readers)
        ):
            runs[id(node)] = rules.Run.FLOAT32
            kinds |= dict.fromkeys(values, rules.Kind.FLOAT32)


def _round_before_reshapes(
    graph: nodes.Graph,
    uses: Mapping[int, Sequence[nodes.Node]],
    runs: dict[int, rules.Run],
    kinds: dict[int, rules.Kind],
) -> None:
    """Lets what products alone read be rounded before it is reshaped, not after.

    A shape that is not known until the step runs is made of what a region returns, and
    the reshape cannot be a part of that region.
    """
    returned = {id(value) for value in graph.outputs}
    for node in reversed(graph.nodes):
        if node.type != "Reshape" or node.inputs[1].constant is not None:
            continue
        value, made = node.inputs[0], node.outputs[0]
        readers = numeric(uses[id(made)])
        if (
            kinds.get(id(value)) is rules.Kind.FLOAT32
            and readers
            and id(made) not in returned
            and all(runs[id(reader)] is not rules.Run.FLOAT32 for reader in readers)
        ):
            runs[id(node)], kinds[id(made)] = rules.Run.NARROW, rules.Kind.NARROW


def numeric(readers: Sequence[Item]) -> list[Item]:
    """Those that read numbers, and not a shape alone."""
    return [
        item
        for item in readers
        if isinstance(item, Region) or item.type not in rules.SHAPES
    ]


def _uses(graph: nodes.Graph) -> Mapping[int, list[nodes.Node]]:
    """For each value by its id, who reads it."""
    uses = collections.defaultdict(list)
    for node in graph.nodes:
        for value in node.reads:
            uses[id(value)].append(node)
    return uses


def _in_order(
    graph: nodes.Graph,
    uses: Mapping[int, Sequence[nodes.Node]],
    runs: Mapping[int, rules.Run],
    kinds: Mapping[int, rules.Kind],
) -> list[Item]:
    """Puts nodes and regions after what they need; effects keep their order."""
    returned = {id(value) for value in graph.outputs}
    regions = [
        _region(group, runs, uses, returned) for group in _groups(graph, runs, kinds)
    ]
    while True:
        items = _items(graph, regions)
        order = _sorted(graph, items)
        left = {id(item) for item in items.values()} - {id(item) for item in order}
        if not left:
            return order
        # A region that would have to read a variable both before and after a write.
        regions = [region for region in regions if id(region) not in left]


def _items(graph: nodes.Graph, regions: Sequence[Region]) -> dict[int, Item]:
    """For each node by its id, itself or the region that it is in."""
    items: dict[int, Item] = {id(node): node for node in graph.nodes}
    for region in regions:
        items |= {id(node): region for node in region.nodes}
    return items


def _sorted(graph: nodes.Graph, items: Mapping[int, Item]) -> list[Item]:
    """Sorts items topologically, in the order of the graph; what cannot be is left."""
    makers = {id(value): node for node in graph.nodes for value in node.outputs}
    after: dict[int, set[int]] = collections.defaultdict(set)
    ranks, by_id = {}, {}
    for rank, node in enumerate(graph.nodes):
        item = items[id(node)]
        ranks.setdefault(id(item), rank)
        by_id[id(item)] = item
        for value in node.reads:
            maker = makers.get(id(value))
            if maker is not None and items[id(maker)] is not item:
                after[id(item)].add(id(items[id(maker)]))
    for first, second in _effects(graph):
        after[id(items[id(second)])].add(id(items[id(first)]))
    followers = collections.defaultdict(list)
    for item, before in after.items():
        for one in before:
            followers[one].append(item)
    waiting = {item: len(before) for item, before in after.items()}
    ready = [(rank, item) for item, rank in ranks.items() if not waiting.get(item)]
    heapq.heapify(ready)
    order = []
    while ready:
        _, item = heapq.heappop(ready)
        order.append(by_id[item])
        for follower in followers[item]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, (ranks[follower], follower))
    return order


def _effects(graph: nodes.Graph) -> Iterator[tuple[nodes.Node, nodes.Node]]:
    """Pairs of nodes of which the first must run before the second."""
    written: dict[int | str, nodes.Node] = {}
    read = collections.defaultdict(list)
    for node in graph.nodes:
        if not node.op.op_def.is_stateful:
            continue
        handles = [v for v in node.inputs if v.tensor.dtype == tf.resource]
        for key in [id(handle) for handle in handles] or ["no resource"]:
            if not node.has_effect:
                if key in written:
                    yield written[key], node
                read[key].append(node)
                continue
            for before in [*read.pop(key, []), *filter(None, [written.get(key)])]:
                if before is not node:
                    yield before, node
            written[key] = node


def _groups(
    graph: nodes.Graph, runs: Mapping[int, rules.Run], kinds: Mapping[int, rules.Kind]
) -> list[list[nodes.Node]]:
    """Connected float32 operations between which nothing else lies on any path.

    The level of an operation is the number of times that the way to it changes between
    region and other; two operations of one level have no other one between them.
    """
    level: dict[int, int] = collections.defaultdict(int)  # by value
    maker: dict[int, nodes.Node] = {}
    parent: dict[int, int] = {}
    members: dict[int, nodes.Node] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    inside: set[int] = set()
    for node in graph.nodes:
        member = _may_be_inside(node, runs)
        levels = [0]
        for value in node.reads:
            if value.constant is not None:
                continue
            crosses = (id(maker.get(id(value))) in inside) is not member
            levels.append(level[id(value)] + crosses)
        for value in node.outputs:
            level[id(value)] = max(levels)
            maker[id(value)] = node
        if not member:
            continue
        inside.add(id(node))
        parent[id(node)], members[id(node)] = id(node), node
        for value in node.reads:
            before = maker.get(id(value))
            same = id(before) in inside and level[id(value)] == max(levels)
            if same:
                parent[root(id(node))] = root(id(before))
    groups = collections.defaultdict(list)
    for i, node in members.items():
        groups[root(i)].append(node)
    return [group for group in groups.values() if _pays(group, kinds)]


def _may_be_inside(node: nodes.Node, runs: Mapping[int, rules.Run]) -> bool:
    own = node.gradient
    if own:  # it becomes a part of the region's gradient
        known = not own.captures and all(
            inner.type in (*_IN_REGIONS, "Const") for inner in own.graph.nodes
        )
    else:
        known = node.type in _IN_REGIONS
    return (
        known
        and runs[id(node)] is rules.Run.FLOAT32
        and any(value.is_float32 for value in [*node.inputs, *node.outputs])
        and any(value.constant is None for value in node.inputs)
    )


def _pays(group: Sequence[nodes.Node], kinds: Mapping[int, rules.Kind]) -> bool:
    """Tells whether a region would keep less than its operations do."""
    narrow = any(
        kinds.get(id(value)) is rules.Kind.NARROW
        for node in group
        for value in node.inputs
    )
    return narrow and any(node.type not in _FREE for node in group)


def _region(
    group: Sequence[nodes.Node],
    runs: Mapping[int, rules.Run],
    uses: Mapping[int, Sequence[nodes.Node]],
    returned: set[int],
) -> Region:
    inner = {id(node) for node in group}
    made = {id(value) for node in group for value in node.outputs}
    inputs = {
        id(value): value
        for node in group
        for value in node.reads
        if id(value) not in made and value.constant is None
    }
    outputs, rounded = [], []
    for value in (value for node in group for value in node.outputs):
        outside = [node for node in uses[id(value)] if id(node) not in inner]
        if not outside and id(value) not in returned:
            continue
        outputs.append(value)
        rounded.append(
            value.is_float32
            and id(value) not in returned
            and all(runs[id(x)] is not rules.Run.FLOAT32 for x in numeric(outside))
        )
    return Region(tuple(group), tuple(inputs.values()), tuple(outputs), tuple(rounded))
