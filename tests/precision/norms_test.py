"""Normalization in 16 bits against Keras' in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.precision import norms, products
from tests.support import half_precision

BATCH_NORMS = {
    "images": {},
    "rows": {"shape": (64, 8)},
    "sequences": {"shape": (8, 10, 8)},
    "volumes": {"shape": (2, 3, 3, 3, 8)},
    "no scale": {"scale": False},
    "no center": {"center": False},
    "other constants": {"momentum": 0.7, "epsilon": 0.1},
    "one row": {"shape": (1, 8)},
    "frozen": {"trainable": False},
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    "policy",
    [
        keras.DTypePolicy("bfloat16"),
        products.Float32Products("float16"),
        products.Float32Products("bfloat16"),
    ],
    ids=["bfloat16", "wide float16", "wide bfloat16"],
)
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batch_norm_is_that_of_keras(name, policy, training):
    arguments = dict(BATCH_NORMS[name])
    shape = arguments.pop("shape", (6, 5, 5, 8))
    generator = np.random.default_rng(0)
    start = [generator.uniform(0.5, 2.0, 8) for _ in range(4)]
    dtype = policy.variable_dtype
    x = tf.constant(half_precision.rounded(generator.normal(3.0, 2.0, shape), dtype))
    dy = half_precision.rounded(generator.normal(size=shape), dtype)
    results = []
    for convert in (False, True):
        layer = keras.layers.BatchNormalization(**arguments)
        layer.build(shape)
        assert norms.can_fuse(layer)
        for variable, value in zip(layer.weights, start, strict=False):
            variable.assign(value)
        one = norms.batch_norm(layer, policy) if convert else layer
        inputs = tf.cast(x, half_precision.HALVES[dtype] if convert else tf.float32)
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = one(inputs, training=training)
        grads = tape.gradient(y, [inputs, *variables], tf.cast(dy, y.dtype))
        moving = [layer.moving_mean, layer.moving_variance]
        results.append([y, *grads, *(np.array(v) for v in moving)])
        if convert:
            assert [id(v) for v in one.weights] == [id(v) for v in layer.weights]
            assert y.dtype == half_precision.HALVES[dtype]
    for exact, ours in zip(*results, strict=True):
        scale = max(np.abs(exact).max(), 1.0)
        # 16-bit tensors are rounded once or twice, sums are of float32.
        half = getattr(ours, "dtype", None) == half_precision.HALVES[dtype]
        bound = (4 * half_precision.EPSILON[dtype] if half else 2e-4) * scale
        np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=bound)


@pytest.mark.parametrize(
    "arguments", [{"axis": 1}, {"synchronized": True}], ids=["axis", "synchronized"]
)
def test_a_batch_norm_that_the_kernel_lacks_stays(arguments):
    layer = keras.layers.BatchNormalization(**arguments)
    layer.build((4, 5, 5, 8))
    assert not norms.can_fuse(layer)


LAYER_NORMS = {
    "rows": ({}, (64, 24)),
    "sequences": ({"epsilon": 1e-6}, (8, 10, 24)),
    "images": ({"axis": 3}, (4, 5, 5, 24)),
    "no scale": ({"scale": False}, (64, 24)),
    "no center": ({"center": False}, (64, 24)),
}


@pytest.mark.parametrize("dtype", half_precision.HALVES)
@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norm_is_that_of_keras(name, dtype):
    arguments, shape = LAYER_NORMS[name]
    layer = keras.layers.LayerNormalization(**arguments)
    layer.build(shape)
    generator = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(generator.normal(size=tuple(variable.shape)))
    assert norms.can_fuse_layer_norm(layer)
    twin = norms.layer_norm(layer, keras.DTypePolicy(dtype))
    # A mean far from 0 needs the mean to be taken off before squaring.
    x = tf.constant(
        half_precision.rounded(generator.normal(50.0, 1.0, shape), dtype),
        half_precision.HALVES[dtype],
    )
    dy = half_precision.rounded(generator.normal(size=shape), dtype)
    wide = tf.cast(x, tf.float32)
    variables = [variable.value for variable in layer.weights]
    exact = half_precision.gradients(lambda: layer(wide), [wide, *variables], dy)
    ours = half_precision.gradients(lambda: twin(x), [x, *variables], dy)
    assert ours[0].dtype == ours[1].dtype == half_precision.HALVES[dtype]
    assert all(gradient.dtype == tf.float32 for gradient in ours[2:])
    for one, other in zip(exact, ours, strict=True):
        bound = half_precision.EPSILON[dtype] * np.abs(one).max()  # rounded once
        np.testing.assert_allclose(np.asarray(other, np.float32), one, atol=bound)


def test_layer_norm_of_many_rows_sums_in_float32():
    layer = keras.layers.LayerNormalization()
    layer.build((half_precision.ROWS, 4))
    twin = norms.layer_norm(layer, keras.DTypePolicy("float16"))
    x = tf.random.stateless_normal((half_precision.ROWS, 4), (0, 0), dtype=tf.float16)
    beta = layer.beta.value
    _, gradient = half_precision.gradients(
        lambda: twin(x), [beta], tf.ones((half_precision.ROWS, 4), tf.float16)
    )
    np.testing.assert_allclose(gradient, np.full(4, half_precision.ROWS), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
@pytest.mark.parametrize(
    "arguments", [{"axis": 1}, {"axis": [1, 2]}, {"rms_scaling": True}], ids=str
)
def test_other_layer_norms_stay(arguments):
    layer = keras.layers.LayerNormalization(**arguments)
    layer.build((4, 5, 6))
    assert not norms.can_fuse_layer_norm(layer)


@pytest.mark.parametrize("dtype", half_precision.HALVES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.ReLU(),
        lambda: keras.layers.ReLU(6.0),
        lambda: keras.layers.Activation("relu"),
        lambda: keras.layers.Activation("relu6"),
    ],
    ids=["ReLU", "ReLU6", "relu", "relu6"],
)
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_frozen_batch_norm_and_relu_round_once(make, dtype, trained):
    """Scale and offset are trained where the user calls the layer in inference."""
    generator = np.random.default_rng(0)
    layer, shape = keras.layers.BatchNormalization(), (4, 6, 6, 8)
    layer.build(shape)
    for variable in layer.weights:
        variable.assign(generator.uniform(0.5, 2.0, 8))
    layer.trainable = trained
    relu, policy = make(), keras.DTypePolicy(dtype)
    x = tf.constant(half_precision.rounded(generator.normal(3.0, 4.0, shape), dtype))
    dy = half_precision.rounded(generator.normal(size=shape), dtype)
    twins = norms.batch_norm(layer, policy), norms.relu(relu, policy)
    assert layer.trainable is trained and twins[1].name == relu.name
    results = []
    for (one, other), kind in (
        ((layer, relu), tf.float32),
        (twins, half_precision.HALVES[dtype]),
    ):
        inputs = tf.cast(x, kind)
        variables = [v.value for v in layer.trainable_variables]
        results.append(
            half_precision.gradients(
                lambda one=one, other=other, x=inputs: other(one(x, training=False)),
                [inputs, *variables],
                dy,
            )
        )
    for exact, ours in zip(*results, strict=True):
        bound = 1.01 * half_precision.EPSILON[dtype] * np.abs(exact) + 4e-6
        near = np.abs(np.asarray(ours, np.float32) - exact) <= bound
        # A sum over the batch: what is on the edge of the bounds may go either way.
        assert near.mean() > 0.995 if exact.shape == shape else near.sum() >= 7


@pytest.mark.parametrize("most", [None, 6.0], ids=["ReLU", "ReLU6"])
def test_relu_after_frozen_batch_norm_reads_what_that_read(most):
    """One loop, so that nothing between the two is made, or kept."""
    layer, policy = keras.layers.BatchNormalization(), keras.DTypePolicy("bfloat16")
    layer.build((4, 6, 6, 8))
    one = norms.batch_norm(layer, policy)
    other = norms.relu(keras.layers.ReLU(most), policy)

    @tf.function(autograph=False)
    def forward(x):
        between = one(x, training=False)
        return between, other(between)

    graph = forward.get_concrete_function(tf.TensorSpec((4, 6, 6, 8), tf.bfloat16))
    between, after = (x.op.inputs[0] for x in graph.outputs)
    seen, ahead = set(), [after.op]
    while ahead:
        operation = ahead.pop()
        seen.add(operation)
        ahead += {x.op for x in operation.inputs} - seen
    assert between.op not in seen


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.ReLU(5.0),
        keras.layers.ReLU(6.0, negative_slope=0.1),
        keras.layers.ReLU(threshold=1.0),
        keras.layers.Activation("gelu"),
        keras.layers.LeakyReLU(),
    ],
    ids=lambda layer: str(layer.get_config())[:40],
)
def test_other_relus_stay(layer):
    assert norms.relu(layer, keras.DTypePolicy("bfloat16")) is None


def test_a_mask_reaches_the_statistics():
    """After a masked sequence, in fit and in float32."""
    x = np.random.default_rng(0).random((16, 10, 3)).astype(np.float32)
    x[:, 6:] = 0
    moved = []
    for precision in ("bfloat16", "float32"):
        keras.utils.set_random_seed(0)
        norm = keras.layers.BatchNormalization(momentum=0.5)
        model = keras.Sequential(
            [
                keras.Input((None, 3)),
                keras.layers.Masking(0.0),
                keras.layers.LSTM(8, return_sequences=True),
                norm,
                keras.layers.LSTM(4),
                keras.layers.Dense(1),
            ]
        )
        step = mp_loop.TrainStep(model, keras.optimizers.SGD(0.1), "mse", precision)
        assert step(x, np.ones((16, 1)))["grads_finite"]
        moved.append([np.array(v) for v in (norm.moving_mean, norm.moving_variance)])
    np.testing.assert_allclose(*moved, rtol=2e-2, atol=2e-3)
