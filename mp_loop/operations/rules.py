"""Which operation runs in which dtype, by the types of its operands.

Products read 16 bits. What only moves numbers, adds them or multiplies two of them
follows its operands, unless a constant makes it larger. All else, known or not, runs in
float32: softmax, exponentials, logarithms, powers, norms, reductions, cumulative sums,
losses. A constant is never rounded: one that 16 bits do not hold exactly makes its
operation run in float32.
"""

from __future__ import annotations

import enum

import numpy as np
import tensorflow as tf

from mp_loop.operations import nodes


class Kind(enum.Enum):
    """What a float32 tensor of the traced call becomes, or is.

    NARROW: it is stored in 16 bits.
    EXACT: a constant that 16 bits hold exactly; it takes any dtype.
    WEIGHT: a trained variable, or what was only moved of one; it may be rounded.
    WIDE: it may be larger than 16 bits hold.
    FLOAT32: any other, ids and raw columns among them.
    """

    NARROW = enum.auto()
    EXACT = enum.auto()
    WEIGHT = enum.auto()
    WIDE = enum.auto()
    FLOAT32 = enum.auto()


class Run(enum.Enum):
    """How an operation is emitted.

    PRODUCT: on 16-bit operands, to a 16-bit result.
    NARROW: in 16 bits, its gradients' sums in float32.
    FLOAT32: on float32 operands.
    """

    PRODUCT = enum.auto()
    NARROW = enum.auto()
    FLOAT32 = enum.auto()


PRODUCTS = frozenset(
    {
        "BatchMatMul",
        "BatchMatMulV2",
        "BatchMatMulV3",
        "Conv2D",
        "Conv2DBackpropInput",
        "Conv3D",
        "Conv3DBackpropInputV2",
        "DepthwiseConv2dNative",
        "Einsum",
        "MatMul",
    }
)
# Each number goes to one place or several, or stays; the first operand counts.
MOVES = frozenset(
    {
        "Abs",
        "BatchToSpaceND",
        "BroadcastTo",
        "DepthToSpace",
        "ExpandDims",
        "GatherNd",
        "GatherV2",
        "Identity",
        "IdentityN",
        "MaxPool",
        "MirrorPad",
        "Neg",
        "Pad",
        "PadV2",
        "PreventGradient",
        "Relu",
        "Reshape",
        "ReverseV2",
        "Roll",
        "Slice",
        "Snapshot",
        "SpaceToBatchND",
        "SpaceToDepth",
        "Split",
        "SplitV",
        "Squeeze",
        "StopGradient",
        "StridedSlice",
        "Tile",
        "Transpose",
        "Unpack",
    }
)
# They read no number.
SHAPES = frozenset({"Rank", "Shape", "Size"})
# Each number of the result is one of the numbers at its place in the operands, which
# broadcast against each other.
_NUMBER_BY_NUMBER = """
    Abs Acos Acosh Add AddN AddV2 Asin Asinh Atan Atan2 Atanh Cast Ceil ClipByValue Cos
    Cosh Digamma Div DivNoNan Elu Equal Erf Erfc Exp Expm1 Floor FloorDiv FloorMod
    Greater GreaterEqual Identity InvGrad IsFinite IsInf IsNan LeakyRelu Less LessEqual
    Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr Maximum Minimum Mul MulNoNan Neg
    NotEqual Pow RealDiv Reciprocal Relu Relu6 Rint Round Rsqrt SelectV2 Selu Sigmoid
    Sign Sin Sinh Snapshot Softplus Softsign Sqrt Square SquaredDifference StopGradient
    Sub Tan Tanh Xdivy Xlogy
"""
NUMBER_BY_NUMBER = frozenset(_NUMBER_BY_NUMBER.split())
SUMS = frozenset({"Add", "AddN", "AddV2", "BiasAdd", "Sub"})
MERGES = frozenset(
    {"ConcatV2", "Maximum", "Minimum", "Mul", "Pack", "RealDiv", "SelectV2", "Select"}
)


def kind_of_constant(value: np.ndarray, narrow: tf.DType) -> Kind:
    """Says what becomes of a float32 constant.

    Args:
      value: float32, of any shape.
      narrow: tf.float16 or tf.bfloat16.
    """
    with np.errstate(over="ignore"):
        rounded = value.astype(narrow.as_numpy_dtype).astype(np.float32)
    if np.any(np.isinf(rounded) & np.isfinite(value)):
        return Kind.WIDE
    exact = value.size == 1 and np.array_equal(rounded, value, equal_nan=True)
    return Kind.EXACT if exact else Kind.FLOAT32


def decide(node: nodes.Node, kinds: list[Kind]) -> tuple[Run, Kind]:
    """Says how a node runs, and what its float32 outputs become.

    Args:
      node: any.
      kinds: of those of its inputs that were float32 when traced.
    """
    if not kinds:
        return Run.FLOAT32, Kind.FLOAT32
    wide = Kind.WIDE in kinds
    if node.type in PRODUCTS and contracts(node.op):
        known = len(kinds) == 2 and not wide
        return (Run.PRODUCT, Kind.NARROW) if known else (Run.FLOAT32, Kind.FLOAT32)
    if node.type in MOVES:
        same = all(kind in (kinds[0], Kind.EXACT) for kind in kinds)
        kind = kinds[0] if same else Kind.WIDE if wide else Kind.FLOAT32
        return Run.NARROW if kind is Kind.NARROW else Run.FLOAT32, kind
    if node.type not in SUMS | MERGES:
        return Run.FLOAT32, Kind.FLOAT32
    if wide:
        return Run.FLOAT32, Kind.FLOAT32 if _clips(node) else Kind.WIDE
    if Kind.NARROW in kinds and not _may_grow(node):
        casts = (Kind.NARROW, Kind.EXACT, Kind.WEIGHT)
        if all(kind in casts for kind in kinds):
            return Run.NARROW, Kind.NARROW
        if node.type in SUMS and _shapes_agree(node):
            return Run.NARROW, Kind.NARROW
    moved = node.type in ("ConcatV2", "Pack") and set(kinds) == {Kind.WEIGHT}
    return Run.FLOAT32, Kind.WEIGHT if moved else Kind.FLOAT32


def contracts(op: tf.Operation) -> bool:
    """Tells whether a product sums over labels that both its operands have."""
    if op.type != "Einsum":
        return True
    left, _, right = op.get_attr("equation").decode().partition("->")
    operands = left.split(",")
    summed = {label for label in left if label.isalpha() and label not in right}
    return (
        len(operands) == 2
        and bool(summed)
        and all(summed <= set(operand) for operand in operands)
        and all(len(set(operand)) == len(operand) for operand in operands)
    )


def broadcasts(node: nodes.Node) -> bool:
    """Tells whether an operand is not known to have the shape of the result."""
    if node.type in ("ConcatV2", "Pack", "AddN"):
        return False
    shape = node.outputs[0].tensor.shape
    return not all(
        value.tensor.shape == shape and shape.is_fully_defined()
        for value in node.inputs
        if value.constant is None
    )


def _clips(node: nodes.Node) -> bool:
    """Tells whether a bound is so far out that it leaves numbers as they are."""
    signs = {"Maximum": -1, "Minimum": 1}
    bounds = [x.constant for x in node.inputs if x.constant is not None]
    return len(bounds) == 1 and bool(np.all(bounds[0] * signs.get(node.type, 0) > 0))


def _may_grow(node: nodes.Node) -> bool:
    """Tells whether a product of two tensors is a power, or a quotient, or larger."""
    if node.type not in ("Mul", "RealDiv"):
        return False
    one, other = node.inputs
    constants = [x.constant for x in (one, other) if x.constant is not None]
    if node.type == "RealDiv":
        return other.constant is None or bool(np.any(np.abs(other.constant) < 1))
    return one is other or any(np.any(np.abs(x) > 1) for x in constants)


def _shapes_agree(node: nodes.Node) -> bool:
    """Tells whether a sum broadcasts nothing, as far as its shapes are known."""
    shapes = [value.tensor.shape for value in node.inputs]
    known = all(shape.rank is not None for shape in shapes)
    return known and all(shape.as_list() == shapes[0].as_list() for shape in shapes)
