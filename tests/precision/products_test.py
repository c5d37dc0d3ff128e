"""The 16-bit layers against float64 and against Keras, at sizes that matter."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.hardware import devices, processor
from mp_loop.precision import activations, origins, products
from tests.support import emissions, half_precision

pytestmark = pytest.mark.usefixtures("same_bits")


@pytest.mark.parametrize("dtype", half_precision.HALVES)
def test_a_bias_gradient_over_many_rows(dtype):
    generator = np.random.default_rng(0)
    dy = half_precision.rounded(
        generator.normal(0.05, 1.0, (half_precision.ROWS, 3)), dtype
    )
    x, bias = (
        tf.zeros((half_precision.ROWS, 3), half_precision.HALVES[dtype]),
        tf.zeros(3),
    )
    with tf.GradientTape() as tape:
        tape.watch(bias)
        y = products.add_bias(x, bias)
    gradient = tape.gradient(y, bias, tf.cast(dy, half_precision.HALVES[dtype]))
    assert y.dtype == half_precision.HALVES[dtype] and gradient.dtype == tf.float32
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
    for add in (products.add_bias, tf.add):
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
    "depthwise strided, plain": lambda: (
        keras.layers.DepthwiseConv2D(3, strides=2, padding="same"),
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
@pytest.mark.parametrize("dtype", half_precision.HALVES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_products_values_and_gradients(name, dtype, policy):
    if policy == "plain" and name in CONVOLUTIONS and not has_units(dtype):
        pytest.skip("such a convolution adds in 16 bits, and is not used here")
    keras.utils.set_random_seed(0)
    layer, shape = PRODUCTS[name]()
    layer.build(shape)
    layer.bias.assign(np.random.default_rng(2).normal(size=tuple(layer.bias.shape)))
    policies = {
        "plain": keras.DTypePolicy,
        "float32 products": products.Float32Products,
    }
    twin = products.with_float32_bias(layer, policies[policy](dtype))
    twin.build(shape)
    kernel = half_precision.rounded(layer.kernel, dtype)
    twin.kernel.assign(kernel)
    layer.kernel.assign(kernel)
    x = tf.constant(
        half_precision.rounded(np.random.default_rng(0).normal(size=shape), dtype)
    )
    dy = None
    results = []
    for one, kind in ((layer, tf.float32), (twin, half_precision.HALVES[dtype])):
        inputs = tf.cast(x, kind)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = one(inputs)
        if dy is None:
            dy = half_precision.rounded(
                np.random.default_rng(1).normal(size=y.shape), dtype
            )
        sources = [inputs, one.kernel.value, layer.bias.value]
        results.append([y, *tape.gradient(y, sources, tf.cast(dy, kind))])
    assert results[1][0].dtype == results[1][2].dtype == half_precision.HALVES[dtype]
    assert results[1][3].dtype == tf.float32
    for exact, ours in zip(*results, strict=True):
        # The product and the sum with the bias are each rounded once.
        bound = 3 * half_precision.EPSILON[dtype] * np.abs(exact).max()
        np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=bound)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_the_gradient_through_strides_is_exact(stride, padding):
    """Sums of a few small integers, at every remainder of size and kernel."""
    generator = np.random.default_rng(0)

    def integers(shape):
        return tf.constant(generator.integers(-8, 9, shape), tf.float32)

    for height, width, length in itertools.product(range(5, 10), (6, 9), (1, 2, 3, 5)):
        x, kernel = integers((2, height, width, 3)), integers((length, 3, 3, 1))
        strides = [1, stride, stride, 1]
        y = tf.nn.depthwise_conv2d(x, kernel, strides, padding)
        dy = integers(y.shape)
        exact = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
            input_sizes=x.shape,
            filter=kernel,
            out_backprop=dy,
            strides=strides,
            padding=padding,
        )
        ours = products._through_strides(dy, kernel, stride, padding, x.shape)
        np.testing.assert_array_equal(ours, exact)


def test_float32_products_overflow_where_tensor_cores_would():
    layer = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)
    layer.build((1, 4))
    twin = products.with_float32_bias(layer, products.Float32Products("float16"))
    twin.build((1, 4))
    twin.kernel.assign(np.ones((4, 1)))
    # 2^15 + 2^15 - 2^15 - 2^15: the partial sums do not fit, the result does.
    x = tf.constant([[32768.0, 32768.0, -32768.0, -32768.0]], tf.float16)
    assert float(twin(x)[0, 0]) == 0.0
    assert np.isinf(float(twin(tf.abs(x))[0, 0]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_activation_that_a_user_wrote_is_cast_by_operation(dtype):
    def own(x):
        return tf.exp(x) * 1e-9 + tf.nn.relu(x)

    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, activation=own, kernel_initializer="identity")
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden(inputs)))
    layer = mp_loop.half_precision_twin(model, dtype).layers[1]
    x = tf.constant([[12.0, 20.0, -1.0, 0.5]])  # exp(12) is beyond float16
    np.testing.assert_allclose(layer(x), own(x), rtol=2.0**-8, atol=1e-6)


FUSED = {function.__name__: function for function in activations._FUSED}


@pytest.mark.parametrize("dtype", half_precision.HALVES)
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_activation_rounds_once(name, dtype):
    function = FUSED[name]
    x = tf.constant(
        half_precision.rounded(np.linspace(-9.0, 9.0, 4000), dtype),
        half_precision.HALVES[dtype],
    )
    dy = half_precision.rounded(np.random.default_rng(0).normal(size=4000), dtype)
    wide = tf.cast(x, tf.float64)
    exact = half_precision.gradients(lambda: function(wide), [wide], dy)
    ours = half_precision.gradients(lambda: activations.fused(function)(x), [x], dy)
    worst = []
    for one, other in zip(exact, ours, strict=True):
        assert other.dtype == half_precision.HALVES[dtype]
        one, other = np.asarray(one), np.asarray(other, np.float64)
        # Half a unit in the last place, and what float32 loses near zero.
        bound = half_precision.EPSILON[dtype] * np.abs(one) + 4e-6
        assert np.all(np.abs(other - one) <= bound * 1.01)
        worst.append(np.abs(other - one).max())
    plain = half_precision.gradients(lambda: function(x), [x], dy)
    theirs = [
        np.abs(np.asarray(other, np.float64) - np.asarray(one)).max()
        for one, other in zip(exact, plain, strict=True)
    ]
    assert np.all(np.array(worst) <= np.array(theirs) * 1.01)


def test_other_activations_are_left_alone():
    for function in (keras.activations.relu, keras.activations.softmax):
        assert activations.fused(function) is function


@pytest.mark.parametrize("dtype", half_precision.HALVES)
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
        monkeypatch.setattr(products, "CHEAP_TERMS", terms)
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


FED_FORWARD = {
    "dense": lambda: [keras.layers.Dense(32, "gelu"), keras.layers.Dense(4)],
    "einsum": lambda: [
        keras.layers.EinsumDense("bhwi,io->bhwo", (6, 6, 32), "silu", "o"),
        keras.layers.EinsumDense("bhwi,io->bhwo", (6, 6, 4)),
    ],
    "convolutions": lambda: [
        keras.layers.Conv2D(64, 3, activation="tanh"),
        keras.layers.Conv2D(4, 3),
    ],
}


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("dtype", half_precision.HALVES)
@pytest.mark.parametrize("kind", FED_FORWARD)
def test_an_activation_is_made_again_to_the_same_bits(kind, dtype, slowly, monkeypatch):
    """Its inputs are kept, and its outputs are not as well."""
    monkeypatch.setattr(devices, "multiplies_slowly", lambda dtype: slowly)
    keras.utils.set_random_seed(0)
    last = keras.layers.Dense(2)  # of float32
    model = keras.Sequential([keras.Input((6, 6, 3)), *FED_FORWARD[kind](), last])
    twin = mp_loop.half_precision_twin(model, dtype)
    x = tf.random.stateless_normal((8, 6, 6, 3), (0, 1))
    size = math.prod(model.layers[0].compute_output_shape((8, 6, 6, 3)))

    def gradients():
        @tf.function(autograph=False)
        def compute():
            with tf.GradientTape() as tape:
                y = tf.cast(twin(x, training=True), tf.float32)
                loss = tf.reduce_sum(tf.identity(y, "end") ** 2)
            return tape.gradient(loss, twin.trainable_variables)

        graph = compute.get_concrete_function().graph
        return len(emissions.kept(graph, size)), compute()

    count, ours = gradients()
    monkeypatch.setattr(origins, "of", lambda tensor, kind: None)
    more, theirs = gradients()
    assert count < more
    for mine, kept in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, kept)


@pytest.mark.parametrize("dtype", half_precision.HALVES)
def test_a_gpu_takes_other_kernels_to_the_same_end(monkeypatch, dtype):
    def trained(on_gpu):
        monkeypatch.setattr(devices, "has_gpu", lambda: on_gpu)
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(4, 1),
                keras.layers.DepthwiseConv2D(3, 2, "same"),
                keras.layers.Flatten(),
                keras.layers.Dense(4),
            ]
        )
        before = model.get_weights()
        step = mp_loop.TrainStep(
            model,
            keras.optimizers.SGD(1.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            dtype,
        )
        x, y = tf.random.stateless_normal((16, 8, 8, 3), (0, 1)), tf.range(16) % 4
        assert step(x, y)["grads_finite"]
        graph = step._step.get_concrete_function(x, y, None).graph
        kernels = {op.type for op in graph.get_operations()}
        return kernels, [
            a - b for a, b in zip(before, model.get_weights(), strict=True)
        ]

    here, grads = trained(on_gpu=False)
    there, others = trained(on_gpu=True)
    assert "Conv2DBackpropFilter" in there - here  # here a product of matrices
    tolerance = {"float16": 8 * 2.0**-10, "bfloat16": 8 * 2.0**-7}[dtype]
    for ours, theirs in zip(grads, others, strict=True):
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(ours)
