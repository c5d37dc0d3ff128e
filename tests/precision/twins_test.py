"""The twin: what runs in which dtype, on every kind of layer."""

import functools
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from experiments.applications import audit
from mp_loop.models import catalog
from mp_loop.precision import coverage, keras_twin, offloading, pairs, twins

pytestmark = pytest.mark.usefixtures("same_bits")

L = keras.layers
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half a unit in the last place
HALVES = tuple(EPSILON)


@keras.saving.register_keras_serializable(package="tests")
class Gain(L.Layer):
    """A layer the project does not know."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=input_shape[-1:], initializer="ones")

    def call(self, inputs):
        return inputs * self.gain


@keras.saving.register_keras_serializable(package="tests")
class Penalty(L.Layer):
    """Adds a loss of its own."""

    def call(self, inputs):
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


@keras.saving.register_keras_serializable(package="tests")
class Watched(L.Layer):
    """Holds a metric and a seed generator of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.size = keras.metrics.Mean()
        self.seeds = keras.random.SeedGenerator(5)

    def call(self, inputs, training=False):
        self.size.update_state(inputs)
        noise = keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)
        return inputs + 0.01 * noise if training else inputs


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, policy="float32", **kwargs):
        super().__init__(**kwargs)
        self.hidden = L.Dense(8, activation="relu", dtype=policy)
        self.head = L.Dense(4)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def images(*layers, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), *layers, L.Flatten(), L.Dense(4)])


def rows(*layers, shape=(6, 5)):
    return images(*layers, shape=shape)


def words(*layers):
    front = [keras.Input((6,), dtype="int32"), L.Embedding(11, 8, mask_zero=True)]
    return keras.Sequential([*front, *layers, L.GlobalAveragePooling1D(), L.Dense(4)])


def functional(inputs, outputs):
    return keras.Model(inputs, outputs)


def attention(**arguments):
    calls = {k: arguments.pop(k) for k in ("use_causal_mask",) if k in arguments}
    x = keras.Input((6, 8))
    y = L.MultiHeadAttention(2, 4, **arguments)(x, x, **calls)
    return functional(x, L.Dense(4)(L.Flatten()(L.LayerNormalization()(x + y))))


def attention_scores():
    x = keras.Input((6, 8))
    y, scores = L.MultiHeadAttention(2, 4)(x, x, return_attention_scores=True)
    both = L.Concatenate()([L.Flatten()(y), L.Flatten()(scores)])
    return functional(x, L.Dense(4)(both))


def cross_attention():
    x = keras.Input((6, 8))
    query = L.Dense(4)(x)
    y = L.MultiHeadAttention(2, 4, value_dim=3)(query, x, key=L.Dense(7)(x))
    return functional(x, L.Dense(4)(L.Flatten()(y)))


def masked_attention():
    tokens = keras.Input((6,), dtype="int32")
    x = L.Embedding(11, 8, mask_zero=True)(tokens)
    y = L.MultiHeadAttention(2, 4)(query=x, value=x)
    return functional(tokens, L.Dense(4)(L.GlobalAveragePooling1D()(y)))


def grouped_attention():
    x = keras.Input((6, 8))
    y = L.GroupQueryAttention(4, 4, 2)(x, x)
    return functional(x, L.Dense(4)(L.Flatten()(y)))


def nested():
    inner = keras.Sequential(
        [keras.Input((8, 8, 4)), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()]
    )
    x = keras.Input((8, 8, 3))
    return functional(x, L.Dense(4)(L.Flatten()(inner(L.Conv2D(4, 1)(x)))))


def nested_last():
    head = keras.Sequential([keras.Input((16,)), L.Dense(8), L.Dense(4)])
    x = keras.Input((16,))
    return functional(x, head(L.Dense(16, activation="gelu")(x)))


def shared():
    x = keras.Input((6, 5))
    layer = L.Dense(5, activation="tanh")
    return functional(x, L.Dense(4)(L.Flatten()(layer(layer(x)))))


def two_inputs_two_outputs():
    a, b = keras.Input((6,)), keras.Input((3,))
    hidden = L.Dense(8, activation="relu")(L.Concatenate()([a, b]))
    return functional([a, b], [L.Dense(4)(hidden), L.Dense(2)(hidden)])


def operations():
    x = keras.Input((8, 8, 3))
    y = keras.ops.relu(L.Conv2D(3, 3, padding="same")(x)) * 2.0 + x
    y = keras.ops.power(y, 2) * 0.01
    y = keras.ops.mean(y, axis=(1, 2)) - keras.ops.max(y, axis=(1, 2))
    return functional(x, L.Dense(4)(y))


def broadcasting():
    x = keras.Input((8, 8, 3))
    y = L.Conv2D(4, 3)(x)
    gate = L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(y))
    return functional(x, L.Dense(4)(L.Flatten()(L.Multiply()([y, gate]))))


def lambda_layer():
    x = keras.Input((6,))
    y = L.Lambda(lambda t: t * 2.0, output_shape=(8,))(L.Dense(8)(x))
    return functional(x, L.Dense(4)(y))


def own_policies():
    x = keras.Input((6,))
    y = L.Dense(8, dtype="mixed_bfloat16")(x)
    return functional(x, L.Dense(4)(L.Dense(8, name="half")(y)))


def frozen():
    model = images(L.Conv2D(4, 3, name="frozen"), L.BatchNormalization(name="still"))
    model.get_layer("frozen").trainable = False
    model.get_layer("still").trainable = False
    return model


REGULARIZED = {"kernel_regularizer": "l2", "bias_regularizer": "l1"}
KINDS = {
    "conv1d": lambda: rows(L.Conv1D(4, 3, activation="relu")),
    "conv1d causal": lambda: rows(L.Conv1D(4, 3, padding="causal")),
    "conv2d": lambda: images(L.Conv2D(4, 3, strides=2, activation="swish")),
    "conv2d dilated": lambda: images(L.Conv2D(4, 3, dilation_rate=2)),
    "conv2d regularized": lambda: images(L.Conv2D(4, 3, **REGULARIZED)),
    "conv3d": lambda: images(L.Conv3D(4, 2), shape=(4, 4, 4, 2)),
    "conv1d transposed": lambda: rows(L.Conv1DTranspose(4, 3)),
    "conv2d transposed": lambda: images(L.Conv2DTranspose(4, 3)),
    "conv3d transposed": lambda: images(L.Conv3DTranspose(2, 2), shape=(3, 3, 3, 2)),
    "depthwise 1d": lambda: rows(L.DepthwiseConv1D(3)),
    "depthwise 2d": lambda: images(L.DepthwiseConv2D(3)),
    "separable 1d": lambda: rows(L.SeparableConv1D(4, 3)),
    "separable 2d": lambda: images(L.SeparableConv2D(4, 3)),
    "einsum": lambda: rows(L.EinsumDense("abc,cd->abd", (6, 7), bias_axes="d")),
    "no bias": lambda: images(L.Conv2D(4, 3, use_bias=False)),
    "batch norm": lambda: images(L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()),
    "batch norm of rows": lambda: rows(L.Dense(8), L.BatchNormalization()),
    "batch norm, channels first": lambda: rows(L.BatchNormalization(axis=1)),
    "plain batch norm": lambda: images(L.BatchNormalization(center=False, scale=False)),
    "regularized batch norm": lambda: images(
        L.BatchNormalization(gamma_regularizer="l2")
    ),
    "layer norm": lambda: rows(L.Dense(8), L.LayerNormalization()),
    "group norm": lambda: images(L.Conv2D(4, 3), L.GroupNormalization(2)),
    "unit norm": lambda: rows(L.Dense(8), L.UnitNormalization()),
    "rms norm": lambda: rows(L.Dense(8), L.RMSNormalization()),
    "spectral norm": lambda: images(L.SpectralNormalization(L.Conv2D(4, 3))),
    "max pooling": lambda: images(L.Conv2D(4, 3), L.MaxPooling2D()),
    "average pooling": lambda: images(L.Conv2D(4, 3), L.AveragePooling2D(2)),
    "lstm": lambda: rows(L.LSTM(4, return_sequences=True)),
    "gru": lambda: rows(L.GRU(4, return_sequences=True)),
    "bidirectional": lambda: rows(L.Bidirectional(L.LSTM(3, return_sequences=True))),
    "embedding": lambda: words(L.Dense(8)),
    "masked lstm": lambda: words(L.LSTM(8, return_sequences=True)),
    "softmax inside": lambda: rows(L.Dense(8, activation="softmax"), L.Softmax()),
    "log softmax": lambda: rows(L.Dense(8, activation="log_softmax")),
    "dropout": lambda: rows(L.Dense(8), L.Dropout(0.5, seed=1), L.ReLU()),
    "attention": attention,
    "attention with dropout": lambda: attention(dropout=0.3, seed=1),
    "causal attention": lambda: attention(use_causal_mask=True),
    "masked attention": masked_attention,
    "attention scores": attention_scores,
    "cross attention": cross_attention,
    "grouped attention": grouped_attention,
    "nested": nested,
    "nested last": nested_last,
    "shared layer": shared,
    "two inputs, two outputs": two_inputs_two_outputs,
    "operations": operations,
    "broadcasting": broadcasting,
    "lambda": lambda_layer,
    "unknown layer": lambda: rows(L.Dense(8), Gain(), L.Dense(8)),
    "metric and seeds inside": lambda: rows(L.Dense(8), Watched(), L.Dense(8)),
    "gaussian noise": lambda: rows(L.Dense(8), L.GaussianNoise(0.1, seed=2)),
    "add_loss": lambda: rows(L.Dense(8), Penalty()),
    "own policies": own_policies,
    "frozen": frozen,
}


def build(name):
    keras.utils.set_random_seed(0)
    return KINDS[name]()


@functools.cache
def converted(name, dtype):
    """A model and its twin, for tests that change neither."""
    model = build(name)
    return model, mp_loop.half_precision_twin(model, dtype)


# In bfloat16 what has a rule of its own; the slow tests try the rest as well.
QUICK = {
    *("conv2d", "depthwise 2d", "einsum", "batch norm", "layer norm", "lstm"),
    *("embedding", "softmax inside", "masked attention", "grouped attention"),
    *("shared layer", "operations", "broadcasting", "unknown layer", "own policies"),
}
TWINS = [
    pytest.param(
        name,
        dtype,
        marks=[] if dtype == "float16" or name in QUICK else [pytest.mark.slow],
        id=f"{name}, {dtype}",
    )
    for name in KINDS
    for dtype in HALVES
]


def batch_for(model, size=8):
    generator = np.random.default_rng(0)

    def one(tensor):
        shape = (size, *tensor.shape[1:])
        if tensor.dtype == "int32":
            return generator.integers(0, 11, shape).astype(np.int32)
        return generator.normal(size=shape).astype(np.float32)

    inputs = [one(tensor) for tensor in model.inputs]
    return inputs if len(inputs) > 1 else inputs[0]


def sum_of_squares(labels, outputs):
    del labels
    return tf.add_n(
        [tf.reduce_mean(tf.square(output - 1.0)) for output in tf.nest.flatten(outputs)]
    )


def arrays(outputs):
    return [np.asarray(output, np.float32) for output in tf.nest.flatten(outputs)]


@pytest.mark.parametrize(("name", "dtype"), TWINS)
def test_outputs_are_near_those_of_float32(name, dtype):
    model, twin = converted(name, dtype)
    inputs = batch_for(model)
    for ours, exact in zip(arrays(twin(inputs)), arrays(model(inputs)), strict=True):
        # Up to a dozen roundings, each of an error of epsilon of the largest.
        bound = 16 * EPSILON[dtype] * max(np.abs(exact).max(), 1.0)
        np.testing.assert_allclose(ours, exact, atol=bound, rtol=0)
        assert ours.shape == exact.shape
    assert all(tensor.dtype == "float32" for tensor in twin.outputs)


@pytest.mark.parametrize("name", KINDS)
def test_a_step_trains_the_masters_and_the_model_saves(name, tmp_path):
    model = build(name)
    inputs = batch_for(model)
    rule = mp_loop.StaticLossScale(2.0**4)
    step = mp_loop.TrainStep(
        model, keras.optimizers.SGD(0.01), sum_of_squares, loss_scale=rule
    )
    before = [np.array(v) for v in model.trainable_variables]
    still = [np.array(v) for v in model.weights if not v.trainable]
    losses = []
    for _ in range(3):
        metrics = step(inputs, tf.zeros(8))
        assert metrics["grads_finite"] and metrics["grad_norm"] > 0
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] or "dropout" in name
    for variable in model.trainable_variables:
        assert variable.dtype == "float32"
        assert np.isfinite(variable).all()
    moved = [
        (old != np.array(variable)).any()
        for old, variable in zip(before, model.trainable_variables, strict=True)
    ]
    # Where a normalization follows, or softmax keys, a bias may have no gradient.
    assert np.mean(moved) > 0.6
    if name == "frozen":
        for old, new in zip(
            still, [v for v in model.weights if not v.trainable], strict=True
        ):
            assert old.tobytes() == np.array(new).tobytes()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=False)
    for one, other in zip(model.weights, again.weights, strict=True):
        assert np.array(one).tobytes() == np.array(other).tobytes()
    for one, other in zip(arrays(model(inputs)), arrays(again(inputs)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", HALVES)
def test_dtypes_layer_by_layer(dtype):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = L.Conv2D(4, 3, name="conv")(x)
    y = L.BatchNormalization(name="norm")(y)
    y = L.ReLU(name="relu")(y)
    y = L.GlobalAveragePooling2D(name="mean")(y)
    y = L.Dense(8, activation="softmax", name="soft")(y)
    model = keras.Model(x, L.Dense(4, name="logits")(y))
    twin = mp_loop.half_precision_twin(model, dtype)

    def dtypes(name):
        return [variable.dtype for variable in twin.get_layer(name).weights]

    assert dtypes("conv") == [dtype, "float32"]  # kernel, shared bias
    assert dtypes("norm") == ["float32"] * 4
    assert dtypes("soft") == [dtype, "float32"]
    for island in ("mean", "logits"):
        assert twin.get_layer(island) is model.get_layer(island)
    produced = {
        "conv": dtype,
        "norm": dtype,
        "relu": dtype,
        "mean": "float32",
        "soft": "float32",
        "logits": "float32",
    }
    tensor = batch_for(model)
    for layer in twin.layers[1:]:
        tensor = layer(tensor)
        assert tensor.dtype == produced[layer.name], layer.name
    for master, working in pairs.of_weights(model, twin):
        shared = working is master
        assert shared == (working.dtype == "float32")
        rounded = tf.cast(master.value, working.dtype)
        assert np.asarray(rounded).tobytes() == np.asarray(working.value).tobytes()


@pytest.mark.parametrize(("name", "dtype"), TWINS)
def test_no_sum_below_float32_forward_or_backward(name, dtype):
    if name == "own policies":
        pytest.skip("the user asked for 16-bit sums")
    model, twin = converted(name, dtype)
    variables = [v.value for v in twin.trainable_variables]

    @tf.function
    def gradients(inputs):
        with tf.GradientTape() as tape:
            loss = sum_of_squares(None, twin(inputs, training=True))
        return tape.gradient(loss, variables)

    inputs = tf.nest.map_structure(tf.constant, batch_for(model))
    assert audit.half_precision_sums(gradients, inputs) == []


def test_the_scan_finds_what_keras_sums_in_16_bits():
    model = keras.models.clone_model(
        build("softmax inside"),
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "mixed_float16"}
        ),
    )
    inputs = tf.constant(batch_for(model))
    assert len(audit.half_precision_sums(tf.function(model), inputs)) == 2


def test_float32_layers_stay():
    model = images(L.Conv2D(4, 3, name="first"), L.Conv2D(4, 3, name="second"))
    twin = mp_loop.half_precision_twin(model, "float16", float32_layers="^sec")
    assert twin.get_layer("second") is model.get_layer("second")
    assert twin.get_layer("first") is not model.get_layer("first")


def test_a_layers_own_policy_is_respected():
    model = own_policies()
    twin = mp_loop.half_precision_twin(model, "float16")
    ours, theirs = twin.layers[1], model.layers[1]
    assert ours is theirs and ours.compute_dtype == "bfloat16"


def test_a_regularizer_that_overflows_float16_is_computed_on_the_master():
    model = keras.Sequential(
        [
            keras.Input((4096,)),
            L.Dense(256, kernel_initializer=keras.initializers.Constant(0.5)),
            L.Dense(1),
        ]
    )
    model.layers[0].kernel.regularizer = keras.regularizers.L2(1e-4)
    step = mp_loop.TrainStep(
        model, keras.optimizers.SGD(0.0), lambda labels, outputs: 0.0 * outputs
    )
    metrics = step(np.zeros((2, 4096), np.float32), np.zeros(2))
    exact = 1e-4 * 4096 * 256 * 0.25
    assert metrics["grads_finite"]
    np.testing.assert_allclose(metrics["loss"], exact, rtol=1e-5)


@pytest.mark.parametrize("size", [4096])
def test_means_and_sums_that_overflow_float16(size):
    x = keras.Input((size, 1))
    y = L.Conv1D(1, 1, use_bias=False, kernel_initializer="ones")(x)
    outputs = [
        L.GlobalAveragePooling1D()(y),
        keras.ops.sum(y, axis=1),
        keras.ops.mean(y, axis=1),
        L.AveragePooling1D(size)(y),
    ]
    twin = mp_loop.half_precision_twin(keras.Model(x, outputs), "float16")
    mean, total, other, pooled = twin(np.full((1, size, 1), 60.0, np.float32))
    assert float(mean[0, 0]) == float(other[0, 0]) == float(pooled[0, 0, 0]) == 60.0
    assert float(total[0, 0]) == 60.0 * size  # 245,760: inf in float16


def test_a_broadcast_gradient_over_many_rows():
    """A gate times 65,536 pixels: its gradient is their sum."""
    pixels = keras.Input((256, 256, 1))
    gate = keras.Input((1, 1, 1))
    scaled = L.Multiply()([L.Activation("linear")(pixels), L.ReLU()(gate)])
    model = keras.Model([pixels, gate], L.Activation("linear")(scaled))
    twin = mp_loop.half_precision_twin(model, "bfloat16")
    values = tf.constant(np.random.default_rng(0).uniform(0, 2, (1, 256, 256, 1)))
    values = tf.cast(tf.cast(values, tf.bfloat16), tf.float32)
    one = tf.ones((1, 1, 1, 1))
    with tf.GradientTape() as tape:
        tape.watch(one)
        total = tf.reduce_sum(twin([values, one]))
    exact = np.sum(np.asarray(values, np.float64))
    gradient = float(tf.reshape(tape.gradient(total, one), []))
    # Rounded once to bfloat16 on its way through the ReLU.
    np.testing.assert_allclose(gradient, exact, rtol=2 * EPSILON["bfloat16"])


def unbuilt():
    return keras.Sequential([L.Dense(4)])


def holds_subclassed():
    x = keras.Input((6,))
    return keras.Model(x, Subclassed(name="mine")(x))


def in_float16():
    return keras.Sequential([keras.Input((6,)), L.Dense(4, dtype="float16")])


def built_subclassed():
    model = Subclassed(name="mine")
    model(np.zeros((1, 6), np.float32))
    return model


OURS, KERAS = mp_loop.half_precision_twin, keras_twin.keras_twin
REFUSED = {
    "subclassed": (KERAS, built_subclassed, r"\(Subclassed 'mine'\) must be a built"),
    "holds a subclassed": (
        KERAS,
        holds_subclassed,
        r"'mine'\).*as `twin`",
    ),
    "unbuilt": (OURS, unbuilt, r"`model` \(Sequential '.*'\) must be built"),
    "16-bit weights": (OURS, in_float16, r"float32 weights: .*kernel is float16"),
    "16-bit weights, by Keras": (KERAS, in_float16, r"weights: .*kernel is float16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(name):
    convert, make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        convert(make(), "float16")


@pytest.mark.parametrize("make", [built_subclassed, holds_subclassed])
def test_a_subclassed_model_multiplies_in_16_bits(make):
    """Alone, and inside a functional one."""
    keras.utils.set_random_seed(0)
    model = make()
    inputs = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    assert coverage.coverage(model, "bfloat16").share == 1
    assert mp_loop.half_precision_twin(model, "float16")(inputs).dtype == "float32"
    step = mp_loop.TrainStep(model, keras.optimizers.SGD(0.1), "mse")
    assert step.twin(inputs).dtype == "float16"  # the loss casts it
    losses = [float(step(inputs, np.ones((8, 4)))["loss"]) for _ in range(5)]
    assert losses[-1] < losses[0]
    outputs = tf.cast(step.twin(inputs), tf.float32)
    np.testing.assert_allclose(outputs, model(inputs), atol=2e-2)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match=r"`dtype` \(float64\) must be one of"):
        mp_loop.half_precision_twin(images(), "float64")


def test_a_subclassed_model_trains_with_its_own_twin():
    keras.utils.set_random_seed(0)
    model, twin = Subclassed(), Subclassed("float16")
    inputs = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    model(inputs), twin(inputs)
    step = mp_loop.TrainStep(model, keras.optimizers.SGD(0.1), "mse", twin=twin)
    assert twin.hidden.kernel.dtype == "float16"
    losses = [float(step(inputs, np.ones((8, 4)))["loss"]) for _ in range(5)]
    assert losses[-1] < losses[0]
    rounded = tf.cast(model.hidden.kernel.value, tf.float16)
    assert (np.asarray(rounded) == np.asarray(twin.hidden.kernel)).all()


def test_a_twin_with_other_weights_is_refused():
    with pytest.raises(ValueError, match="`twin` .* must have the weights of `model`"):
        mp_loop.TrainStep(
            build("conv2d"), keras.optimizers.SGD(), "mse", twin=build("conv3d")
        )


def test_every_convolution_of_a_real_architecture_is_converted():
    """It trains as well: see `tests/experiments_test.py`."""
    model = catalog.build("MobileNetV2", (32, 32, 3), 4)
    twin = mp_loop.half_precision_twin(model, "float16")
    halves = [v.path for v in twin.trainable_variables if v.dtype == "float16"]
    assert len(halves) == 52
    assert len(twin.trainable_variables) == len(model.trainable_variables)


# Frozen weights.


def half_frozen():
    """On the second of two processors, which stands for an accelerator."""
    keras.utils.set_random_seed(3)
    with tf.device("CPU:1"):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                L.Conv2D(6, 3, name="frozen"),
                L.BatchNormalization(name="frozen_norm"),
                L.ReLU(),
                L.Flatten(),
                L.Dense(4, name="head"),
            ]
        )
    for name in ("frozen", "frozen_norm"):
        model.get_layer(name).trainable = False
    return model


def device_of(variable):
    return variable.value.device.rsplit("/", 1)[-1].removeprefix("device:")


@pytest.mark.parametrize(
    ("dtype", "jit_compile"),
    [("float16", True), ("bfloat16", False)],
    ids=["float16, XLA", "bfloat16"],
)
def test_originals_of_frozen_copies_wait_on_the_host(dtype, jit_compile, tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    y = np.arange(16) % 4
    weights, outputs = [], []
    for move in (False, True):
        model = half_frozen()
        kernel = model.get_layer("frozen").kernel
        before = weakref.ref(kernel.value)
        if move:
            offloading.keep_on_host(model, twins.half_precision_twin(model, dtype))
            gc.collect()
            assert before() is None, "somebody keeps the old one"
        with tf.device("CPU:1"):
            step = mp_loop.TrainStep(
                model,
                keras.optimizers.Adam(0.01),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                dtype,
                jit_compile=jit_compile,
            )
            for _ in range(3):
                assert step(x, y)["grads_finite"]
        assert device_of(kernel) == ("CPU:0" if move else "CPU:1")
        others = [*model.weights, *step.twin.weights]
        assert {device_of(v) for v in others if v is not kernel} == {"CPU:1"}
        weights.append([np.asarray(v) for v in others])
        model.save(tmp_path / "model.keras")
        outputs.append(keras.models.load_model(tmp_path / "model.keras")(x).numpy())
        np.testing.assert_array_equal(outputs[-1], model(x))
    for stayed, moved in zip(*weights, strict=True):
        np.testing.assert_array_equal(moved, stayed)
    np.testing.assert_array_equal(*outputs)
