"""The 16-bit layers against float64 and against Keras, at sizes that matter."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop import devices, layers, processor

HALVES = {"float16": tf.float16, "bfloat16": tf.bfloat16}
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
ROWS = 131_072


def rounded(values, dtype):
    """Values that the dtype holds exactly, as float64."""
    return np.asarray(tf.cast(tf.cast(values, HALVES[dtype]), tf.float64))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_bias_gradient_over_many_rows(dtype):
    generator = np.random.default_rng(0)
    dy = rounded(generator.normal(0.05, 1.0, (ROWS, 3)), dtype)
    x, bias = tf.zeros((ROWS, 3), HALVES[dtype]), tf.zeros(3)
    with tf.GradientTape() as tape:
        tape.watch(bias)
        y = layers.add_bias(x, bias)
    gradient = tape.gradient(y, bias, tf.cast(dy, HALVES[dtype]))
    assert y.dtype == HALVES[dtype] and gradient.dtype == tf.float32
    # A float32 sum in some order: far below one unit of 16 bits.
    np.testing.assert_allclose(gradient, dy.sum(0), rtol=1e-4)
    if dtype == "bfloat16":  # what it replaces loses most of it
        plain = tf.raw_ops.BiasAddGrad(out_backprop=tf.cast(dy, tf.bfloat16))
        error = np.abs(np.asarray(plain, np.float64) - dy.sum(0)) / dy.sum(0)
        assert error.max() > 0.3


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (1, 1, 4), ()], ids=str)
def test_a_bias_broadcasts_as_addition_does(shape):
    generator = np.random.default_rng(0)
    x = tf.constant(generator.normal(size=(2, 3, 4)), tf.float32)
    bias = tf.constant(generator.normal(size=shape), tf.float32)
    results = []
    for add in (layers.add_bias, tf.add):
        with tf.GradientTape() as tape:
            tape.watch([x, bias])
            y = add(x, bias)
            loss = tf.reduce_sum(y * y)
        results.append([y, *tape.gradient(loss, [x, bias])])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


PRODUCTS = {
    "dense": lambda: (keras.layers.Dense(6, activation="tanh"), (8, 5)),
    "dense of rows": lambda: (keras.layers.Dense(6), (8, 4, 5)),
    "conv2d": lambda: (keras.layers.Conv2D(6, 3, padding="same"), (4, 7, 7, 3)),
    "conv2d strided": lambda: (keras.layers.Conv2D(6, 3, strides=2), (4, 7, 7, 3)),
    "conv2d 1x1": lambda: (keras.layers.Conv2D(6, 1), (4, 7, 5, 3)),
    "conv2d 1x1 strided": lambda: (keras.layers.Conv2D(6, 1, strides=2), (4, 7, 5, 3)),
    "conv3d": lambda: (keras.layers.Conv3D(2, 2), (2, 4, 4, 4, 2)),
    "depthwise": lambda: (keras.layers.DepthwiseConv2D(3), (4, 7, 7, 3)),
    "depthwise strided": lambda: (
        keras.layers.DepthwiseConv2D(3, strides=2),
        (4, 7, 7, 3),
    ),
    "depthwise strided, padded": lambda: (
        keras.layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
        (4, 8, 7, 3),
    ),
    "einsum": lambda: (
        keras.layers.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de"),
        (8, 4, 5),
    ),
}


CONVOLUTIONS = ("conv2d", "conv2d strided", "conv3d")


def has_units(dtype):
    """Tells whether this machine multiplies a type and adds in float32."""
    if dtype == "float16" and "avx512_fp16" in (processor.instructions() or ()):
        return True
    return not devices.multiplies_slowly(dtype)


@pytest.mark.parametrize("policy", ["plain", "float32 products"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_products_values_and_gradients(name, dtype, policy):
    if policy == "plain" and name in CONVOLUTIONS and not has_units(dtype):
        pytest.skip("such a convolution adds in 16 bits, and is not used here")
    keras.utils.set_random_seed(0)
    layer, shape = PRODUCTS[name]()
    layer.build(shape)
    layer.bias.assign(np.random.default_rng(2).normal(size=tuple(layer.bias.shape)))
    policies = {"plain": keras.DTypePolicy, "float32 products": layers.Float32Products}
    twin = layers.with_float32_bias(layer, policies[policy](dtype))
    twin.build(shape)
    kernel = rounded(layer.kernel, dtype)
    twin.kernel.assign(kernel)
    layer.kernel.assign(kernel)
    x = tf.constant(rounded(np.random.default_rng(0).normal(size=shape), dtype))
    dy = None
    results = []
    for one, kind in ((layer, tf.float32), (twin, HALVES[dtype])):
        inputs = tf.cast(x, kind)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = one(inputs)
        if dy is None:
            dy = rounded(np.random.default_rng(1).normal(size=y.shape), dtype)
        sources = [inputs, one.kernel.value, layer.bias.value]
        results.append([y, *tape.gradient(y, sources, tf.cast(dy, kind))])
    assert results[1][0].dtype == results[1][2].dtype == HALVES[dtype]
    assert results[1][3].dtype == tf.float32
    for exact, ours in zip(*results, strict=True):
        # The product and the sum with the bias are each rounded once.
        bound = 3 * EPSILON[dtype] * np.abs(exact).max()
        np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=bound)


def test_float32_products_overflow_where_tensor_cores_would():
    layer = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)
    layer.build((1, 4))
    twin = layers.with_float32_bias(layer, layers.Float32Products("float16"))
    twin.build((1, 4))
    twin.kernel.assign(np.ones((4, 1)))
    # 2^15 + 2^15 - 2^15 - 2^15: the partial sums do not fit, the result does.
    x = tf.constant([[32768.0, 32768.0, -32768.0, -32768.0]], tf.float16)
    assert float(twin(x)[0, 0]) == 0.0
    assert np.isinf(float(twin(tf.abs(x))[0, 0]))


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
        layers.Float32Products("float16"),
        layers.Float32Products("bfloat16"),
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
    x = tf.constant(rounded(generator.normal(3.0, 2.0, shape), dtype))
    dy = rounded(generator.normal(size=shape), dtype)
    results = []
    for convert in (False, True):
        layer = keras.layers.BatchNormalization(**arguments)
        layer.build(shape)
        assert layers.can_fuse(layer)
        for variable, value in zip(layer.weights, start, strict=False):
            variable.assign(value)
        one = layers.batch_norm(layer, policy) if convert else layer
        inputs = tf.cast(x, HALVES[dtype] if convert else tf.float32)
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = one(inputs, training=training)
        grads = tape.gradient(y, [inputs, *variables], tf.cast(dy, y.dtype))
        moving = [layer.moving_mean, layer.moving_variance]
        results.append([y, *grads, *(np.array(v) for v in moving)])
        if convert:
            assert [id(v) for v in one.weights] == [id(v) for v in layer.weights]
            assert y.dtype == HALVES[dtype]
    for exact, ours in zip(*results, strict=True):
        scale = max(np.abs(exact).max(), 1.0)
        # 16-bit tensors are rounded once or twice, sums are of float32.
        half = getattr(ours, "dtype", None) == HALVES[dtype]
        bound = (4 * EPSILON[dtype] if half else 2e-4) * scale
        np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=bound)


@pytest.mark.parametrize(
    "arguments", [{"axis": 1}, {"synchronized": True}], ids=["axis", "synchronized"]
)
def test_a_batch_norm_that_the_kernel_lacks_stays(arguments):
    layer = keras.layers.BatchNormalization(**arguments)
    layer.build((4, 5, 5, 8))
    assert not layers.can_fuse(layer)


def test_attention_softmax_is_of_float32():
    layer = keras.layers.MultiHeadAttention(1, 1, use_bias=False, dropout=0.1)
    query, value = np.array([[[1.0]]]), np.array([[[1.0], [2.0]]])
    layer(query, value)
    for variable in layer.trainable_variables:
        variable.assign(tf.ones_like(variable))
    twin = layers.attention(layer, keras.DTypePolicy("float16"))
    twin.build((1, 1, 1), (1, 2, 1))
    for variable in twin.trainable_variables:
        variable.assign(tf.ones_like(variable))
    exact = layer(query, value, return_attention_scores=True)
    ours = twin(query, value, return_attention_scores=True)
    assert ours[0].dtype == tf.float16 and ours[1].dtype == tf.float32
    np.testing.assert_allclose(ours[1], exact[1], rtol=1e-6)
    assert float(tf.reduce_sum(ours[1])) == pytest.approx(1.0, abs=1e-6)


def test_an_operation_runs_in_float32():
    tensor = keras.ops.mean(keras.KerasTensor((8, 2)), axis=0)
    mean = layers.InFloat32(tensor._keras_history.operation)
    x = tf.fill((4096,), tf.constant(60.0, tf.float16))
    assert mean(x).dtype == tf.float32 and float(mean(x)) == 60.0
    symbolic = mean(keras.KerasTensor((8, 2), "float16"))
    assert (symbolic.shape, symbolic.dtype) == ((2,), "float32")


LAYER_NORMS = {
    "rows": ({}, (64, 24)),
    "sequences": ({"epsilon": 1e-6}, (8, 10, 24)),
    "images": ({"axis": 3}, (4, 5, 5, 24)),
    "no scale": ({"scale": False}, (64, 24)),
    "no center": ({"center": False}, (64, 24)),
}


def gradients(function, sources, dy):
    with tf.GradientTape() as tape:
        tape.watch(sources)
        y = function()
    return [y, *tape.gradient(y, sources, tf.cast(dy, y.dtype))]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norm_is_that_of_keras(name, dtype):
    arguments, shape = LAYER_NORMS[name]
    layer = keras.layers.LayerNormalization(**arguments)
    layer.build(shape)
    generator = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(generator.normal(size=tuple(variable.shape)))
    assert layers.can_fuse_layer_norm(layer)
    twin = layers.layer_norm(layer, keras.DTypePolicy(dtype))
    # A mean far from 0 needs the mean to be taken off before squaring.
    x = tf.constant(rounded(generator.normal(50.0, 1.0, shape), dtype), HALVES[dtype])
    dy = rounded(generator.normal(size=shape), dtype)
    wide = tf.cast(x, tf.float32)
    variables = [variable.value for variable in layer.weights]
    exact = gradients(lambda: layer(wide), [wide, *variables], dy)
    ours = gradients(lambda: twin(x), [x, *variables], dy)
    assert ours[0].dtype == ours[1].dtype == HALVES[dtype]
    assert all(gradient.dtype == tf.float32 for gradient in ours[2:])
    for one, other in zip(exact, ours, strict=True):
        bound = EPSILON[dtype] * np.abs(one).max()  # rounded once
        np.testing.assert_allclose(np.asarray(other, np.float32), one, atol=bound)


def test_layer_norm_of_many_rows_sums_in_float32():
    layer = keras.layers.LayerNormalization()
    layer.build((ROWS, 4))
    twin = layers.layer_norm(layer, keras.DTypePolicy("float16"))
    x = tf.random.stateless_normal((ROWS, 4), (0, 0), dtype=tf.float16)
    beta = layer.beta.value
    _, gradient = gradients(lambda: twin(x), [beta], tf.ones((ROWS, 4), tf.float16))
    np.testing.assert_allclose(gradient, np.full(4, ROWS), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
@pytest.mark.parametrize(
    "arguments", [{"axis": 1}, {"axis": [1, 2]}, {"rms_scaling": True}], ids=str
)
def test_other_layer_norms_stay(arguments):
    layer = keras.layers.LayerNormalization(**arguments)
    layer.build((4, 5, 6))
    assert not layers.can_fuse_layer_norm(layer)


FUSED = {function.__name__: function for function in layers._FUSED}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_activation_rounds_once(name, dtype):
    function = FUSED[name]
    x = tf.constant(rounded(np.linspace(-9.0, 9.0, 4000), dtype), HALVES[dtype])
    dy = rounded(np.random.default_rng(0).normal(size=4000), dtype)
    wide = tf.cast(x, tf.float64)
    exact = gradients(lambda: function(wide), [wide], dy)
    ours = gradients(lambda: layers.fused(function)(x), [x], dy)
    worst = []
    for one, other in zip(exact, ours, strict=True):
        assert other.dtype == HALVES[dtype]
        one, other = np.asarray(one), np.asarray(other, np.float64)
        # Half a unit in the last place, and what float32 loses near zero.
        bound = EPSILON[dtype] * np.abs(one) + 4e-6
        assert np.all(np.abs(other - one) <= bound * 1.01)
        worst.append(np.abs(other - one).max())
    plain = gradients(lambda: function(x), [x], dy)
    theirs = [
        np.abs(np.asarray(other, np.float64) - np.asarray(one)).max()
        for one, other in zip(exact, plain, strict=True)
    ]
    assert np.all(np.array(worst) <= np.array(theirs) * 1.01)


@pytest.mark.parametrize("dtype", HALVES)
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
    norm, shape = keras.layers.BatchNormalization(), (4, 6, 6, 8)
    norm.build(shape)
    for variable in norm.weights:
        variable.assign(generator.uniform(0.5, 2.0, 8))
    norm.trainable = trained
    relu, policy = make(), keras.DTypePolicy(dtype)
    x = tf.constant(rounded(generator.normal(3.0, 4.0, shape), dtype))
    dy = rounded(generator.normal(size=shape), dtype)
    twins = layers.batch_norm(norm, policy), layers.relu(relu, policy)
    assert norm.trainable is trained and twins[1].name == relu.name
    results = []
    for (one, other), kind in (((norm, relu), tf.float32), (twins, HALVES[dtype])):
        inputs = tf.cast(x, kind)
        variables = [v.value for v in norm.trainable_variables]
        results.append(
            gradients(
                lambda one=one, other=other, x=inputs: other(one(x, training=False)),
                [inputs, *variables],
                dy,
            )
        )
    for exact, ours in zip(*results, strict=True):
        bound = 1.01 * EPSILON[dtype] * np.abs(exact) + 4e-6
        near = np.abs(np.asarray(ours, np.float32) - exact) <= bound
        # A sum over the batch: what is on the edge of the bounds may go either way.
        assert near.mean() > 0.995 if exact.shape == shape else near.sum() >= 7


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
    assert layers.relu(layer, keras.DTypePolicy("bfloat16")) is None


def test_other_activations_are_left_alone():
    for function in (keras.activations.relu, keras.activations.softmax, tf.abs):
        assert layers.fused(function) is function


@pytest.mark.parametrize("dtype", HALVES)
def test_a_cheap_convolution_is_computed_again_to_the_same_bits(monkeypatch, dtype):
    def step():
        keras.utils.set_random_seed(0)
        inputs = x = keras.Input((8, 8, 3))
        for _ in range(2):
            x = keras.layers.Conv2D(8, 3, use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        outputs = keras.layers.Dense(4)(keras.layers.Flatten()(x))
        return mp_loop.TrainStep(
            keras.Model(inputs, outputs),
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            dtype,
        )

    monkeypatch.setattr(devices, "multiplies_slowly", lambda dtype: False)
    kept, again = [], []
    for terms, results in ((0, kept), (10**6, again)):
        monkeypatch.setattr(layers, "CHEAP_TERMS", terms)
        one = step()
        x = tf.random.stateless_normal((16, 8, 8, 3), (0, 1))
        y = tf.range(16) % 4
        results.append(one(x, y)["grad_norm"])
        results += [v.numpy() for v in one.state.master_weights]
        graph = one._step.get_concrete_function(x, y, None).graph
        results.append(sum(op.type == "Conv2D" for op in graph.get_operations()))
    assert again.pop() > kept.pop() == 2
    for mine, theirs in zip(kept, again, strict=True):
        np.testing.assert_array_equal(theirs, mine)
