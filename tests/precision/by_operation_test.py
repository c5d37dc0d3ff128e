"""Layers without a twin of their own: what they do beside multiplying."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from experiments.applications import audit
from mp_loop.operations import emission
from mp_loop.precision import by_operation, offloading, pairs, recomputation

L = keras.layers
HOW = emission.Emission(tf.bfloat16)
X = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)


class Block(L.Layer):
    """A Transformer block of keras.io's examples, with all that a layer may do."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.attention = L.MultiHeadAttention(2, width)
        self.inner = keras.Sequential([L.Dense(2 * width, "gelu"), L.Dense(width)])
        self.norms = [L.LayerNormalization(), L.BatchNormalization(momentum=0.5)]
        self.dropout = L.Dropout(0.5, seed=3)
        self.supports_masking = True

    def build(self, shape):
        self.attention.build(shape, shape)
        self.inner.build(shape)
        for norm in self.norms:
            norm.build(shape)
        self.calls = self.add_weight(name="calls", dtype="int64", trainable=False)

    def call(self, inputs, mask=None, training=False):
        self.calls.assign_add(1)
        pairs = None if mask is None else mask[:, None] & mask[:, :, None]
        x = inputs + self.attention(inputs, inputs, attention_mask=pairs)
        x = self.dropout(self.norms[0](x), training=training)
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(x)))
        return self.norms[1](x + self.inner(x), training=training)


class Dictionary(L.Layer):
    """Takes and returns more than one tensor."""

    def build(self, shapes):
        self.dense = L.Dense(8)
        self.dense.build(shapes["a"])

    def call(self, inputs):
        return {"sum": self.dense(inputs["a"]) + inputs["b"], "ids": inputs["ids"]}


def built(layer, *arguments):
    keras.utils.set_random_seed(0)
    layer(*arguments)
    return layer


def test_a_block_trains_as_float32_does():
    """Statistics, seeds, losses and counts move as in float32, once a step."""
    inputs = keras.Input((6, 8))
    keras.utils.set_random_seed(0)
    model = keras.Model(inputs, L.Dense(3)(Block(name="b")(Block(name="a")(inputs))))
    float32 = keras.models.clone_model(model, clone_function=lambda layer: (
        built(type(layer)(name=layer.name), X) if isinstance(layer, Block)
        else type(layer).from_config(layer.get_config())
    ))  # fmt: skip
    float32.set_weights(model.get_weights())
    for ours, theirs in zip(model.variables, float32.variables, strict=True):
        theirs.assign(ours)
    labels = np.random.default_rng(1).normal(size=(4, 6, 3)).astype(np.float32)
    results = []
    for one, precision in ((model, "bfloat16"), (float32, "float32")):
        step = mp_loop.TrainStep(one, keras.optimizers.SGD(0.05), "mse", precision)
        results.append([float(step(X, labels)["loss"]) for _ in range(4)])
        assert one.get_layer("a").calls == 4
    np.testing.assert_allclose(*results, rtol=2e-2)
    for ours, theirs in zip(model.variables, float32.variables, strict=True):
        exact = ours.dtype != "float32"
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0 if exact else 5e-2)


def test_recomputed_in_the_backward_pass():
    losses = []
    for recompute in (True, False):
        inputs = keras.Input((6, 8))
        keras.utils.set_random_seed(0)
        x = Block(name="b")(Block(name="a")(inputs))
        model = keras.Model(inputs, L.Dense(3)(Block(name="c")(x)))
        step = mp_loop.TrainStep(
            model, keras.optimizers.SGD(0.05), "mse", "bfloat16", recompute=recompute
        )
        labels = np.ones((4, 6, 3))
        losses.append([float(step(X, labels)["loss"]) for _ in range(3)])
        assert model.get_layer("b").calls == 3
    np.testing.assert_allclose(*losses, rtol=1e-3)


class Residual(L.Layer):
    def build(self, shape):
        self.dense = L.Dense(shape[-1], activation="relu")
        self.dense.build(shape)

    def call(self, inputs):
        return inputs + self.dense(inputs)


def test_segments_take_16_bits():
    """What passes a cut is stored in 16 bits."""
    inputs = keras.Input((6, 8))
    x = Residual()(Residual()(L.Dense(8)(inputs)))
    model = keras.Model(inputs, L.Dense(3)(x))
    twin = mp_loop.half_precision_twin(model, "bfloat16")
    forward = recomputation.Recomputed(twin)
    seen = []

    def spied(call):
        def spy(x, *args, **kwargs):
            seen.append(x.dtype)
            return call(x, *args, **kwargs)

        return spy

    for segment in forward.segments[1:]:
        segment.call = spied(segment.call)
    forward(tf.constant(X))
    assert seen and set(seen) == {tf.bfloat16}


def test_masks_pass_and_reach_the_layer():
    tokens = keras.Input((6,), dtype="int32")
    keras.utils.set_random_seed(0)
    x = Block()(L.Embedding(9, 8, mask_zero=True)(tokens))
    model = keras.Model(tokens, L.Dense(3)(L.GlobalAveragePooling1D()(x)))
    twin = mp_loop.half_precision_twin(model, "bfloat16")
    ids = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 1]])
    np.testing.assert_allclose(twin(ids), model(ids), atol=3e-2)
    changed = np.array([[1, 2, 3, 0, 0, 0]])
    np.testing.assert_allclose(twin(ids)[:1], twin(changed), rtol=1e-5)
    padded = by_operation.layer(model.layers[2], HOW)(model.layers[1](ids))
    np.testing.assert_array_equal(padded._keras_mask, ids != 0)


def test_nested_arguments_and_integers():
    given = {"a": X, "b": X, "ids": np.array([2**24 + 1])}
    layer = built(Dictionary(), given)
    found = by_operation.layer(layer, HOW)(given)
    assert found["sum"].dtype == tf.bfloat16
    np.testing.assert_array_equal(found["ids"], [2**24 + 1])


def test_a_layer_called_twice_sums_its_gradients_in_float32():
    inputs = keras.Input((6, 8))
    block = Block()
    model = keras.Model(inputs, L.Dense(3)(block(block(inputs))))
    twin = mp_loop.half_precision_twin(model, "bfloat16")
    weights = [v.value for v in block.trainable_variables]

    @tf.function(autograph=False)
    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(twin(x, training=True)))
        return tape.gradient(loss, weights)

    assert audit.half_precision_sums(gradients, tf.constant(X)) == []
    assert {g.dtype for g in gradients(X)} == {tf.float32}


def test_layers_inside_that_stay_in_float32():
    inputs = keras.Input((6, 8))
    keras.utils.set_random_seed(0)
    model = keras.Model(inputs, L.Dense(3)(Block(name="block")(inputs)))
    inner = model.get_layer("block").inner.name
    share = mp_loop.coverage(model, "float16").share
    exempt = mp_loop.coverage(model, "float16", float32_layers=f"^{inner}$").share
    products = 2 * 6 * 8 * 16  # of 6 rows, through both layers
    total = products / (share - exempt)
    attention = 4 * 6 * 8 * 16 + 2 * 2 * 6 * 6 * 8
    head = 6 * 8 * 3
    np.testing.assert_allclose(total, products + attention + head, rtol=1e-6)


def test_the_twin_keeps_no_model_alive():
    import gc
    import weakref

    model = keras.Sequential([keras.Input((6, 8)), Block(), L.Dense(3)])
    twin = mp_loop.half_precision_twin(model, "float16")
    twin(X)
    there = weakref.ref(model.layers[0])
    del model, twin
    gc.collect()
    assert there() is None


def frozen_attention(trainable):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    attention = keras.layers.GroupQueryAttention(4, 4, 2)
    x = keras.layers.Flatten()(attention(inputs, inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    attention.trainable = trainable
    return model, attention


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_frozen_kernels_are_stored_in_16_bits(dtype):
    """They compute the same bits, and nothing rounds a float32 kernel in a step."""
    x = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    outputs = []
    for trainable in (True, False):
        model, attention = frozen_attention(trainable)
        twin = mp_loop.half_precision_twin(model, dtype)
        outputs.append(np.asarray(twin(x)))
    np.testing.assert_array_equal(*outputs)
    found = {v.path: w for v, w in pairs.of_weights(model, twin)}
    kernels = [v for v in attention.weights if v.name == "kernel"]
    assert len(kernels) == 4
    for kernel in kernels:
        copy = found[kernel.path]
        assert copy.dtype == dtype and not copy.trainable
        np.testing.assert_array_equal(copy, tf.cast(kernel.value, dtype))
    step = mp_loop.TrainStep(model, "sgd", "mse", dtype, twin=twin)
    graph = step.graph(tf.constant(x), tf.zeros((2, 3)))
    reads = [
        op.inputs[0]
        for op in graph.get_operations()
        if op.type == "Cast" and op.inputs[0].op.type == "ReadVariableOp"
    ]
    assert not [t for t in reads if t.dtype == tf.float32 and t.shape.rank == 3]
    for kernel in kernels:  # as a callback may, by hand
        kernel.assign(2 * kernel)
    step.reload()
    for kernel in kernels:
        np.testing.assert_array_equal(found[kernel.path], tf.cast(kernel.value, dtype))


def test_originals_that_were_moved_away_are_not_read():
    """The twin that is made afterwards stores the same weights in 16 bits."""
    with tf.device("CPU:1"):  # stands for an accelerator
        model, attention = frozen_attention(trainable=False)
    first = mp_loop.half_precision_twin(model, "bfloat16")
    offloading.keep_on_host(model, first)
    kernels = [v for v in attention.weights if v.name == "kernel"]
    assert all(map(offloading.is_on_host, kernels))
    second = mp_loop.half_precision_twin(model, "bfloat16")
    dtypes = [[w.dtype for w in twin.weights] for twin in (first, second)]
    assert dtypes[0] == dtypes[1] and "bfloat16" in dtypes[0]
