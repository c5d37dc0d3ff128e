"""Recomputed activations give the gradients of kept ones, and the same state."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.operations import again
from mp_loop.precision import recomputation

pytestmark = pytest.mark.usefixtures("same_bits")

L = keras.layers
IMAGE = (8, 8, 3)


def image(rest):
    inputs = keras.Input(IMAGE)
    return keras.Model(inputs, L.Dense(4)(rest(inputs)))


def residual(inputs, blocks=3):
    x = L.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = L.ReLU()(L.BatchNormalization(momentum=0.5)(x))
    for _ in range(blocks):
        y = L.Conv2D(8, 3, padding="same", use_bias=False)(x)
        y = L.Dropout(0.3)(L.BatchNormalization(momentum=0.5)(y))
        x = L.ReLU()(L.Add()([x, y]))
    return L.GlobalAveragePooling2D()(x)


def chain(inputs):
    x = L.Flatten()(inputs)
    for i in range(4):
        x = L.Dense(16, activation="gelu", name=f"hidden{i}")(x)
        x = L.Dropout(0.5)(x)
    return x


def attention(inputs):
    x = L.Dense(16)(L.Reshape((64, 3))(inputs))
    for _ in range(2):
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(2, 8, dropout=0.2)(y, y)])
        y = L.Dense(16, activation="gelu")(L.LayerNormalization()(x))
        x = L.Add()([x, y])
    return L.GlobalAveragePooling1D()(x)


def nested(inputs):
    inner = keras.Input((8, 8, 3))
    base = keras.Model(inner, residual(inner), name="base")
    return L.Dense(16, activation="relu")(base(inputs))


def called_twice(inputs):
    x = L.Dense(16)(L.Flatten()(inputs))
    shared = L.Dense(16, activation="tanh")
    return L.Dense(16)(shared(L.Dense(16)(shared(x))))


def with_losses(inputs):
    x = L.Flatten()(inputs)
    x = L.Dense(16, activity_regularizer=keras.regularizers.L2(0.1))(x)
    x = L.Dense(16, kernel_regularizer=keras.regularizers.L2(0.1))(x)
    return L.Dense(16, activation="relu")(L.BatchNormalization()(x))


def frozen(inputs):
    x = L.Conv2D(8, 3, trainable=False)(inputs)
    x = L.BatchNormalization(trainable=False)(x)
    return L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(x))


def sequential():
    layers = [L.Flatten(), L.Dense(16, "relu"), L.Dropout(0.5), L.Dense(16, "relu")]
    return keras.Sequential([keras.Input(IMAGE), *layers, L.Dense(4)])


def masked():
    inputs = keras.Input((12,), dtype="int32")
    x = L.Embedding(20, 8, mask_zero=True)(inputs)
    x = L.Dense(8, activation="relu")(L.Dropout(0.2)(x))
    x = L.LSTM(8)(x)
    return keras.Model(inputs, L.Dense(4)(L.Dense(8)(x)))


MODELS = {
    "chain": lambda: image(chain),
    "residual": lambda: image(residual),
    "deep": lambda: image(functools.partial(residual, blocks=9)),
    "attention": lambda: image(attention),
    "nested": lambda: image(nested),
    "called twice": lambda: image(called_twice),
    "losses": lambda: image(with_losses),
    "frozen": lambda: image(frozen),
    "sequential": sequential,
    "masked": masked,
}


def make(name, precision, **arguments):
    keras.utils.set_random_seed(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.1)
    return mp_loop.TrainStep(MODELS[name](), optimizer, loss, precision, **arguments)


def batch(step, seed):
    random = np.random.default_rng(seed)
    shape = (16, *step.model.inputs[0].shape[1:])
    labels = random.integers(4, size=16)
    if step.model.inputs[0].dtype == "int32":
        return random.integers(20, size=shape).astype(np.int32), labels
    return random.standard_normal(shape).astype(np.float32), labels


def variables(step):
    state = step.state
    return [*state.master_weights, *state.other_weights, *state.seeds]


CASES = [
    *((name, "bfloat16") for name in MODELS if name != "deep"),
    ("residual", "float16"),
    pytest.param("attention", "float16", marks=pytest.mark.slow),
    ("residual", "float32"),
]


@pytest.mark.parametrize(("name", "precision"), CASES, ids=" ".join)
def test_steps_are_those_of_the_plain_step(name, precision):
    plain, again = make(name, precision), make(name, precision, recompute=True)
    for seed in range(3):
        one, other = plain(*batch(plain, seed)), again(*batch(again, seed))
        # Gradients that meet may be added in another order.
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5)
        np.testing.assert_allclose(other["grad_norm"], one["grad_norm"], rtol=1e-4)
    for mine, theirs in zip(variables(plain), variables(again), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5)


def kept_bytes(step):
    """What the backward pass reads of the forward pass's activations."""
    inputs, labels = map(tf.constant, batch(step, 0))
    graph = step._step.get_concrete_function(inputs, labels, None).graph
    forward, found = set(), [graph.outputs[0].op]
    while found:
        op = found.pop()
        if op not in forward:
            forward.add(op)
            found += [tensor.op for tensor in op.inputs]
    used, found = set(), [op for op in graph.get_operations() if op not in forward]
    found = [op for op in found if "Assign" in op.type or "Apply" in op.type]
    while found:  # backwards from what has an effect: the rest is pruned
        op = found.pop()
        if op not in used:
            used.add(op)
            found += [tensor.op for tensor in op.inputs]
    kept = {
        tensor.name: tensor.shape.num_elements() * tensor.dtype.size
        for op in used - forward
        for tensor in op.inputs
        if tensor.op in forward and tensor.shape.rank == 4 and op.type != "Shape"
    }
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass():
    plain = kept_bytes(make("deep", "bfloat16"))
    assert 0 < kept_bytes(make("deep", "bfloat16", recompute=True)) < 0.85 * plain


def test_statistics_move_once_and_seeds_once():
    step = make("residual", "float32", recompute=True)
    plain = make("residual", "float32")
    inputs, labels = batch(step, 0)
    step(inputs, labels)
    plain(inputs, labels)
    for mine, theirs in zip(plain.state.seeds, step.state.seeds, strict=True):
        np.testing.assert_array_equal(theirs, mine)
    for mine, theirs in zip(
        plain.state.other_weights, step.state.other_weights, strict=True
    ):
        np.testing.assert_allclose(theirs, mine, rtol=1e-6)


def test_under_xla():
    plain = make("residual", "float32")
    other_step = make("residual", "float32", recompute=True, jit_compile=True)
    inputs, labels = batch(plain, 0)
    one, other = plain(inputs, labels), other_step(inputs, labels)
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=0.3)  # other dropout

    def one_step(*batch):
        with again.for_xla():
            return other_step.trace(*batch).metrics

    compiled = tf.function(one_step, jit_compile=True)
    hlo = compiled.experimental_get_compiler_ir(inputs, labels)("hlo")
    assert "opt-barrier" in hlo


def test_a_skip_changes_nothing():
    step = make("residual", "float16", recompute=True)
    inputs, labels = batch(step, 0)
    before = [np.array(v) for v in variables(step)[: -len(step.state.seeds)]]
    metrics = step(inputs * np.float32(np.nan), labels)
    assert not metrics["grads_finite"]
    for old, variable in zip(before, variables(step), strict=False):
        np.testing.assert_array_equal(variable, old)


def test_a_second_derivative_is_refused():
    step = make("chain", "bfloat16", recompute=True)
    inputs = tf.constant(batch(step, 0)[0])
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            outputs, _ = step.gradients.forward(inputs)
        penalty = tf.reduce_sum(inner.gradient(outputs, inputs) ** 2)
        with pytest.raises(NotImplementedError, match="gradient penalty"):
            outer.gradient(penalty, inputs)


REFUSED = {
    "two inputs": lambda: keras.Model(
        [a := keras.Input((4,)), b := keras.Input((4,))], L.Add()([a, b])
    ),
    "nowhere to cut": lambda: keras.Model(a := keras.Input((4,)), L.Dense(4)(a)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused(name):
    with pytest.raises(ValueError, match=r"`recompute` \(True\)"):
        recomputation.Recomputed(REFUSED[name]())


def test_cuts_are_where_one_tensor_passes():
    model = image(residual)
    parts = recomputation.parts(model)
    assert parts[0].start is model.inputs[0] and parts[-1].end is model.outputs[0]
    for one, other in zip(parts, parts[1:], strict=False):
        assert one.end is other.start
    # Stem, sum and ReLU of each block, head: the inside of a block has no cut.
    assert len(parts) == 3 + 3 * 2 + 2


def test_groups_take_the_least_memory():
    parts = recomputation.parts(image(chain))
    groups = recomputation.join(parts)
    assert [part for group in groups for part in group] == parts

    def cost(groups):
        kept = sum(recomputation._size(group[0].start) for group in groups)
        return kept + max(sum(part.size for part in group) for group in groups)

    def every_grouping(rest):
        if not rest:
            yield []
        for i in range(1, len(rest) + 1):
            for others in every_grouping(rest[i:]):
                yield [rest[:i], *others]

    assert cost(groups) <= 1.1 * min(map(cost, every_grouping(parts)))
