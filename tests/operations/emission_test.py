"""What a float32 call becomes when it is emitted again, forward and backward."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from experiments.applications import audit
from mp_loop.operations import calls, emission, nodes, rules

HALVES = {"float16": tf.float16, "bfloat16": tf.bfloat16}
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
RANDOM = np.random.default_rng(0)
W = tf.Variable(RANDOM.normal(size=(8, 8)).astype(np.float32) / 3, name="w")
B = tf.Variable(RANDOM.normal(size=(8,)).astype(np.float32), name="b")
TABLE = tf.Variable(RANDOM.normal(size=(5, 8)).astype(np.float32), name="table")
VARIABLES = (W, B, TABLE)


def emitted(function, dtype="bfloat16", **how):
    """The function, emitted again in every call."""
    how = emission.Emission(HALVES[dtype], **how)

    def call(*arguments):
        return calls.trace(
            lambda given: function(*given), arguments, how.narrow, VARIABLES
        ).emit(how)

    return call


def gradients(function):
    """A traced function of the outputs, and of gradients to input and variables."""

    @tf.function(autograph=False)
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(function(x), tf.float32)
            loss = tf.reduce_sum(
                y * tf.sin(tf.range(tf.size(y, tf.int64)) / 7)[..., None]
                if y.shape.rank == 0
                else tf.square(y)
            )
        found = tape.gradient(loss, [x, *VARIABLES])
        return y, [g if g is None else tf.convert_to_tensor(g) for g in found]

    return compute


def layer_norm(x):
    mean = tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(x, mean), -1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-6) * B + B


def attention(x):
    q, k, v = x @ W, x @ W, x @ W
    scores = tf.einsum("btd,bsd->bts", q, k) * 8**-0.5
    mask = tf.linalg.band_part(tf.ones((6, 6)), -1, 0)
    scores += (1.0 - mask) * -1e9
    return tf.einsum("bts,bsd->btd", tf.nn.softmax(scores), v)


def block(x):
    x = layer_norm(x + attention(x))
    return layer_norm(x + tf.nn.gelu(x @ W + B) @ W)


def loop(x):
    """A recurrent net."""
    state = tf.zeros_like(x[:, 0])

    def body(i, state):
        return i + 1, tf.tanh(x[:, i] @ W + state @ W + B)

    return tf.while_loop(lambda i, _: i < 6, body, (0, state), maximum_iterations=6)[1]


def branch(x):
    y = x @ W
    return tf.cond(tf.reduce_sum(x) > 0.0, lambda: y @ W, lambda: tf.exp(-y))


@tf.function(autograph=False)
def inner(x):
    return tf.nn.relu(x @ W + B)


def rotary(x):
    angles = tf.einsum("i,j->ij", tf.range(6.0), 10.0 ** -tf.range(4.0))
    a, b = tf.split(x @ W, 2, -1)
    cos, sin = tf.cos(angles), tf.sin(angles)
    return tf.concat([a * cos - b * sin, b * cos + a * sin], -1) @ W


def swiglu(x):
    return (tf.nn.silu(x @ W) * (x @ W)) @ W


def convolution(x):
    kernel = tf.reshape(W, (1, 1, 8, 8))
    y = tf.nn.relu(tf.nn.conv2d(x[:, :, None], kernel, 1, "SAME") + B)
    return tf.nn.max_pool2d(y, 2, 1, "SAME")[:, :, 0] @ W


def looked_up(x):
    rows = tf.gather(TABLE, tf.cast(tf.abs(x[..., 0]) * 2, tf.int32) % 5)
    return rows @ W + x


KINDS = {
    f.__name__: f
    for f in (
        attention, block, loop, branch, inner, rotary, swiglu, convolution, looked_up,
        layer_norm,
    )
}  # fmt: skip
HOW = ("plain", "compiled", "float32 products", "unknown batch")
X = tf.constant(np.random.default_rng(1).normal(size=(4, 6, 8)).astype(np.float32))


def relative(ours, exact):
    ours, exact = np.asarray(ours, np.float64), np.asarray(exact, np.float64)
    return np.linalg.norm(ours - exact) / max(np.linalg.norm(exact), 1e-12)


@pytest.mark.parametrize(
    ("name", "how", "dtype"),
    [
        pytest.param(name, how, dtype, marks=[pytest.mark.slow] * ((i + j + k) % 2))
        for i, name in enumerate(KINDS)
        for j, how in enumerate(HOW)
        for k, dtype in enumerate(HALVES)
    ],
)  # in CI each pair: kind and way, kind and dtype, way and dtype
def test_near_float32_with_float32_sums(name, how, dtype):
    function = KINDS[name]
    x = tf.cast(X, HALVES[dtype]) if dtype == "float16" else X
    ours = gradients(
        emitted(
            function,
            dtype,
            compiled=how == "compiled",
            float32_products=how == "float32 products",
        )
    )
    unknown = how == "unknown batch"
    spec = tf.TensorSpec([None, *X.shape[1:]] if unknown else X.shape, x.dtype)
    y, grads = ours.get_concrete_function(spec)(x)
    exact_y, exact = gradients(function)(X)
    assert relative(y, exact_y) < 8 * EPSILON[dtype]
    for g, e in zip(grads, exact, strict=True):
        assert (g is None) == (e is None)
        if g is not None:
            assert relative(g, e) < 16 * EPSILON[dtype]
    assert [g.dtype for g in grads[1:] if g is not None] == [
        tf.float32 for g in grads[1:] if g is not None
    ]
    assert audit.half_precision_sums(ours, spec) == []
    wide = [
        op.name
        for op in all_operations(ours.get_concrete_function(spec).graph)
        if op.type in rules.PRODUCTS
        and rules.contracts(op)
        and op.inputs[-1].dtype == tf.float32
    ]
    assert how == "float32 products" or not wide


def all_operations(graph):
    for op in graph.get_operations():
        yield op
        for body, _ in nodes.inner_graphs(op):
            yield from all_operations(body)


def types_in(function, x, dtype):
    """How often each operation has an operand of 16 bits."""
    graph = tf.function(emitted(function, dtype), autograph=False)
    graph = graph.get_concrete_function(x).graph
    return collections.Counter(
        op.type
        for op in all_operations(graph)
        if op.type != "Cast" and any(t.dtype == HALVES[dtype] for t in op.inputs)
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_stored_in_16_bits(dtype):
    """The residual, products and what they read; nothing else."""
    found = types_in(lambda x: tf.nn.relu(x @ W + B) @ W + x, X, dtype)
    found = {name: found[name] for name in ("MatMul", "AddV2", "Relu", "Mul")}
    assert found == {"MatMul": 2, "AddV2": 2, "Relu": 1, "Mul": 0}


def test_ids_and_raw_columns_reach_a_lookup_unrounded():
    """257, 2049 and 5001 are no bfloat16 numbers."""
    ids = tf.constant([[257.0, 2049.0, 5001.0]])

    def find(ids):
        both = tf.concat([tf.reshape(ids, (3, 1)), tf.transpose(ids)], 1)
        return tf.cast(tf.pad(both, [[0, 1], [0, 0]])[:3, 0], tf.int32)

    np.testing.assert_array_equal(emitted(find)(ids), [257, 2049, 5001])


@pytest.mark.parametrize("dtype", HALVES)
def test_constants_that_16_bits_do_not_hold(dtype):
    x = tf.zeros((2, 8))
    logs = emitted(lambda x: tf.math.log(tf.nn.relu(x @ W) + 1e-8), dtype)(x)
    np.testing.assert_allclose(logs, np.full((2, 8), np.log(1e-8)), rtol=1e-6)
    x = tf.ones((2, 8))
    large = emitted(lambda x: (x @ W) * 1e6 * 1e-6, dtype)(x)
    np.testing.assert_allclose(large, x @ W, atol=4 * EPSILON[dtype], rtol=1e-2)
    masked = emitted(lambda x: tf.nn.softmax(x @ W - 1e30 * (1 - x)), dtype)(x)
    np.testing.assert_allclose(masked, tf.nn.softmax(x @ W), atol=4 * EPSILON[dtype])
    third = emitted(lambda x: (x @ W) * (1 / 3), dtype)(x)
    exact = tf.cast(emitted(lambda x: x @ W, dtype)(x), tf.float32) * (1 / 3)
    np.testing.assert_array_equal(third, exact)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_bound_that_16_bits_do_not_hold_is_no_reason(dtype):
    """What it clips multiplies in 16 bits."""
    graph = tf.function(
        emitted(lambda x: tf.clip_by_value(x @ W, -1e9, 7.0) @ W, dtype)
    ).get_concrete_function(X)
    products = [op for op in all_operations(graph.graph) if "MatMul" in op.type]
    assert [op.inputs[0].dtype for op in products] == [HALVES[dtype]] * 2


def test_a_product_that_xla_compiles_stays_so():
    """Grouped convolutions have no other gradient on every processor."""

    @tf.function(jit_compile=True, autograph=False)
    def convolve(x):
        return tf.nn.conv2d(x[:, :, None], tf.reshape(W, (1, 1, 8, 8)), 1, "SAME")

    ours, exact = (gradients(f)(X)[1] for f in (emitted(convolve), convolve))
    assert relative(ours[1], exact[1]) < 16 * EPSILON["bfloat16"]
    graph = tf.function(emitted(convolve), autograph=False).get_concrete_function(X)
    calls = [op for op in graph.graph.get_operations() if "PartitionedCall" in op.type]
    assert [op.get_attr("_XlaMustCompile") for op in calls] == [True]


def rows(x):
    return tf.ones((32_768, 1)) @ x  # a product, so that what follows is of 16 bits


BROADCASTS = {
    "bias": lambda h, w: h + w,
    "bias, subtracted": lambda h, w: h - w,
    "BiasAdd": lambda h, w: tf.nn.bias_add(h, w),
    "gain": lambda h, w: h * w,
    "maximum": lambda h, w: tf.maximum(h, w * 4),
    "where": lambda h, w: tf.where(h > 9.0, h, w),
    "repeated": lambda h, w: h + tf.tile(w[None], (32_768, 1)),
    "broadcast": lambda h, w: h + tf.broadcast_to(w, (32_768, 8)),
    "looked up": lambda h, w: h + tf.gather(w[None], tf.zeros((32_768,), tf.int32)),
    "matrix": lambda h, w: tf.reshape(h, (4096, 8, 8)) @ (w[:, None] * tf.ones((1, 8))),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", BROADCASTS)
def test_gradients_of_what_was_broadcast_are_summed_in_float32(name, known):
    """32,768 equal gradients: added one by one, bfloat16 stops at 256."""

    def loss(function):
        @tf.function(
            autograph=False,
            input_signature=[tf.TensorSpec([1, 8])]
            if known
            else [tf.TensorSpec([None, 8])],
        )
        def compute(x):
            with tf.GradientTape() as tape:
                y = tf.cast(function(x), tf.float32)
                total = tf.reduce_sum(y) / 1024
            return tape.gradient(total, B)

        return compute

    def function(x):
        return BROADCASTS[name](rows(x), B)

    ours = loss(emitted(function))(tf.ones((1, 8)))
    exact = loss(function)(tf.ones((1, 8)))
    np.testing.assert_allclose(ours, exact, rtol=8 * EPSILON["bfloat16"])


def test_a_gradient_of_ones_own_is_kept():
    @tf.custom_gradient
    def reversed_gradient(x):
        kept = tf.exp(x)
        return tf.identity(x), lambda dy: -dy * kept

    def function(x):
        return reversed_gradient(x @ W) @ W

    (_, (ours, *_)), (_, (exact, *_)) = (
        gradients(f)(X) for f in (emitted(function), function)
    )
    assert relative(ours, exact) < 16 * EPSILON["bfloat16"]


def test_effects_keep_their_order_and_their_count():
    state = tf.Variable(1.0)

    def function(x):
        before = state + tf.reduce_mean(x @ W)
        state.assign(before)
        doubled = tf.math.tanh(x @ W) * state
        state.assign_add(1.0)
        return tf.reduce_sum(doubled) + state

    how = emission.Emission(tf.bfloat16)

    @tf.function(autograph=False)
    def call(x):
        given = (lambda arguments: function(arguments)), x, how.narrow, (W, B, state)
        return calls.trace(*given).emit(how)

    ours, after = float(call(X)), float(state)
    state.assign(1.0)
    exact = float(tf.function(function)(X))
    np.testing.assert_allclose([ours, after], [exact, float(state)], rtol=2e-2)


def test_under_xla():
    for name in ("block", "loop", "rotary"):
        function = gradients(emitted(KINDS[name]))
        compiled = tf.function(function, jit_compile=True, autograph=False)
        (y, ours), (exact_y, exact) = compiled(X), gradients(KINDS[name])(X)
        assert relative(y, exact_y) < 8 * EPSILON["bfloat16"]
        assert relative(ours[1], exact[1]) < 16 * EPSILON["bfloat16"]


def test_a_scope_that_stays_in_float32():
    """With the loops in it, whose bodies know no scope."""

    def function(x):
        with tf.name_scope("exempt"):
            y = loop(x @ W)
        return y @ W

    def dtypes(scopes):
        how = emission.Emission(tf.bfloat16, float32_scopes=frozenset(scopes))
        traced = calls.trace(function, X, how.narrow, VARIABLES)
        graph = tf.function(lambda: traced.emit(how), autograph=False)
        graph = graph.get_concrete_function().graph
        products = [op for op in all_operations(graph) if op.type in rules.PRODUCTS]
        return [op.inputs[0].dtype.name for op in products]

    assert sorted(dtypes(["exempt"])) == ["bfloat16", *["float32"] * 3]
    assert dtypes(["another"]) == ["bfloat16"] * 4


@pytest.mark.parametrize("products", [False, True])
def test_what_a_loop_reads_in_every_turn_is_rounded_once(products):
    """Not kept for each turn either; and its gradient is a float32 sum."""

    def function(x):
        fixed = x @ W

        def body(i, state):
            return i + 1, tf.tanh(x[:, i] @ W + state @ W + fixed[:, 0])

        zeros = tf.zeros_like(x[:, 0])
        turns = {"maximum_iterations": 6}
        return tf.while_loop(lambda i, _: i < 6, body, (0, zeros), **turns)[1]

    ours = gradients(emitted(function, float32_products=products))
    graph = ours.get_concrete_function(X).graph
    inside = [
        op
        for loop in graph.get_operations()
        for body, _ in nodes.inner_graphs(loop)
        for op in all_operations(body)
    ]
    found = {
        (op.type, t.dtype) for op in inside for t in op.inputs if t.shape == W.shape
    }
    kept = {x for x in found if x[0] in ("TensorListPushBack", "ReadVariableOp")}
    assert found - kept == found
    assert ("Cast", tf.float32) not in found  # a gradient of 16 bits is widened
    pairs = zip(gradients(function)(X)[1], ours(X)[1], strict=True)
    assert all(e is None or relative(g, e) < 0.05 for e, g in pairs)


def test_a_gradient_that_every_turn_adds_to():
    """1,024 turns add 1 each; a bfloat16 sum would end at 256."""

    def function(x):
        fixed = x @ tf.eye(8, dtype=x.dtype)

        def body(i, state):
            return i + 1, tf.nn.relu(state + fixed)

        turns = {"maximum_iterations": 1024}
        state = tf.zeros_like(fixed)
        return tf.while_loop(lambda i, _: i < 1024, body, (0, state), **turns)[1]

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.cast(emitted(function)(x), tf.float32))
        return tape.gradient(y, x)

    np.testing.assert_array_equal(gradient(tf.abs(X) + 1.0), np.full(X.shape, 1024))
    assert audit.half_precision_sums(gradient, X) == []
    plain = tf.function(lambda x: tf.gradients(function(x), x), autograph=False)
    narrow = tf.cast(X, tf.bfloat16)
    found = [x.split()[0] for x in audit.half_precision_sums(plain, narrow)]
    assert set(found) == {"AddN", "Sum"}


def test_a_variable_that_a_loop_writes_is_read_in_every_turn():
    state = tf.Variable(0.0)

    def function(x):
        def body(i, total):
            state.assign_add(1.0)
            return i + 1, total + state * tf.reduce_mean(x)

        return tf.while_loop(lambda i, _: i < 4, body, (0, 0.0))[1]

    @tf.function(autograph=False)
    def call(x):
        how = emission.Emission(tf.bfloat16)
        return calls.trace(lambda x: function(x), x, how.narrow, (state,)).emit(how)

    assert float(call(tf.ones((2, 3)))) == 1 + 2 + 3 + 4


def test_a_loop_in_a_loop():
    def function(x):
        def outer(i, state):
            return i + 1, loop(tf.tile(state[:, None], (1, 6, 1)) + x)

        zeros = tf.zeros_like(x[:, 0])
        turns = {"maximum_iterations": 2}
        return tf.while_loop(lambda i, _: i < 2, outer, (0, zeros), **turns)[1]

    for products in (False, True):
        ours = gradients(emitted(function, float32_products=products))
        (y, grads), (exact_y, exact) = ours(X), gradients(function)(X)
        assert relative(y, exact_y) < 16 * EPSILON["bfloat16"]
        assert relative(grads[1], exact[1]) < 32 * EPSILON["bfloat16"]
