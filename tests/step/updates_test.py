"""Fused kernels compute what Keras does; what they lack is left to it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.step import updates

pytestmark = pytest.mark.usefixtures("same_bits")

FUSED = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "sgd_decay": lambda: keras.optimizers.SGD(0.1, weight_decay=0.01),
    "scheduled": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, 30), momentum=0.9
    ),
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
}


def both_updates(make_optimizer, jit_compile=False):
    """Fused and Keras' updates on equal variables, as functions."""
    pairs = []
    for fused in (True, False):
        generator = np.random.default_rng(0)
        masters = [
            keras.Variable(generator.normal(size=shape).astype(np.float32))
            for shape in ((7, 5), (3,), (4, 3))
        ]
        update = updates.make(make_optimizer(), masters, fused)
        assert (type(update) is updates.FusedUpdate) is fused
        variables = [*update.slots, *(v.value for v in masters)]
        pairs.append((tf.function(update, jit_compile=jit_compile), variables))
    return pairs


def contents(variables):
    return [np.asarray(variable).tobytes() for variable in variables]


def assert_a_skip_keeps_odd_numbers(update, variables):
    """What arithmetic changes even if it adds nothing: -0.0 and subnormal numbers."""
    odd = np.float32([-0.0, 1e-40, -1e-45, 3.4e38, -1.0])
    before = [variable.numpy().copy() for variable in variables]
    for variable, value in zip(variables, before, strict=True):
        if variable.dtype.is_floating:
            variable.assign(np.resize(odd, value.shape))
    held = contents(variables)
    grads = [tf.fill(shape, np.float32(-1.0)) for shape in ((7, 5), (3,), (4, 3))]
    one = tf.constant(1.0)
    assert not update(grads, one, tf.constant(False), one)
    assert contents(variables) == held
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)


def skip_by_select(monkeypatch):
    """What a skip would change is put back, as on a GPU, and not branched around."""
    monkeypatch.setattr(updates, "_may_branch", lambda variable: False)


@pytest.mark.parametrize("way", ["branch", "select", "xla"])
@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_equal_keras(name, way, monkeypatch):
    if way == "select":
        skip_by_select(monkeypatch)
    jit_compile = way == "xla"
    (fused, ours), (plain, theirs) = both_updates(FUSED[name], jit_compile)
    generator = np.random.default_rng(1)
    scale, before = tf.constant(2.0**10), contents(ours)
    assert_a_skip_keeps_odd_numbers(fused, ours)
    assert_a_skip_keeps_odd_numbers(plain, theirs)
    assert contents(ours) == before
    for step in range(40):
        grads = [
            tf.constant(generator.normal(size=shape) * 2.0**10, tf.float32)
            for shape in ((7, 5), (3,), (4, 3))
        ]
        apply = tf.constant(step % 7 != 0)
        if not apply:
            grads[step % 3] *= float("inf") if step % 2 else float("nan")
            grads[1] += float("inf")
        largest = tf.constant(2.0**20)
        fused(grads, scale, apply, largest)
        plain(grads, scale, apply, largest)
        if not apply:
            assert contents(ours) == before  # exact, and neutral from step 0 on
        before = contents(ours)
    exact = not name.startswith("adam") and not jit_compile
    for one, other in zip(ours, theirs, strict=True):
        if exact:
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        else:  # Other orders of rounding, 40 updates: a few units in the last place.
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_gradients_of_16_bits_update_as_their_float32_copies_do(name, dtype):
    generator = np.random.default_rng(1)
    scale, largest = tf.constant(2.0**5), tf.constant(2.0**10)
    narrow, wide = both_updates(FUSED[name]), both_updates(FUSED[name])
    for _ in range(3):
        numbers = [generator.normal(size=shape) for shape in ((7, 5), (3,), (4, 3))]
        grads = [tf.constant(number, dtype) for number in numbers]
        copies = [tf.cast(grad, tf.float32) for grad in grads]
        for (one, ours), (other, theirs) in zip(narrow, wide, strict=True):
            one(grads, scale, tf.constant(True), largest)
            other(copies, scale, tf.constant(True), largest)
            assert contents(ours) == contents(theirs)


@pytest.mark.parametrize("way", ["branch", "select"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_float32_gradients_exist_for_some_masters_at_a_time(name, way, monkeypatch):
    if way == "select":
        skip_by_select(monkeypatch)
    with tf.device("CPU:0"):
        masters = [keras.Variable(tf.zeros([256, 1024])) for _ in range(24)]  # 1 MiB
        update = tf.function(updates.make(FUSED[name](), masters))
        grads = [tf.ones([256, 1024], tf.bfloat16) for _ in masters]
        one = tf.constant(1.0)
        peaks = []
        for _ in range(5):  # the least, for other tests' tensors are freed meanwhile
            assert update(grads, one, tf.constant(True), one)
            try:
                tf.config.experimental.reset_memory_stats("CPU:0")
            except ValueError:
                pytest.skip("this TensorFlow does not count this processor's bytes")
            before = tf.config.experimental.get_memory_info("CPU:0")["current"]
            assert update(grads, one, tf.constant(True), one)
            after = tf.config.experimental.get_memory_info("CPU:0")
            peaks.append(after["peak"] - before)
    assert min(peaks) < 16 * 2**20, peaks  # of 24, and of 24 more for each slot


OTHERS = {
    "amsgrad": lambda: keras.optimizers.Adam(amsgrad=True),
    "clipped": lambda: keras.optimizers.SGD(global_clipnorm=1.0),
    "ema": lambda: keras.optimizers.Adam(use_ema=True),
    "accumulating": lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
    "rmsprop": lambda: keras.optimizers.RMSprop(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_kernels_lack_is_left_to_keras(name):
    update = updates.make(OTHERS[name](), [keras.Variable([1.0])])
    assert type(update) is updates.KerasUpdate


def test_a_constrained_master_is_left_to_keras():
    layer = keras.layers.Dense(2, kernel_constraint="non_neg")
    layer.build((None, 3))
    update = updates.make(keras.optimizers.SGD(), layer.trainable_variables)
    assert type(update) is updates.KerasUpdate


FINITE = {
    **{name: make for name, make in FUSED.items() if name != "scheduled"},
    "amsgrad": lambda: keras.optimizers.Adam(amsgrad=True),
    "ema": lambda: keras.optimizers.SGD(use_ema=True, ema_overwrite_frequency=2),
    "rmsprop": lambda: keras.optimizers.RMSprop(momentum=0.9),
    "adagrad": lambda: keras.optimizers.Adagrad(),
    "adadelta": lambda: keras.optimizers.Adadelta(),
    "nadam": lambda: keras.optimizers.Nadam(),
    "lamb": lambda: keras.optimizers.Lamb(),
    "ftrl": lambda: keras.optimizers.Ftrl(),
    "tiny epsilon": lambda: keras.optimizers.Adam(epsilon=1e-30),
    "full momentum": lambda: keras.optimizers.SGD(momentum=1.0),
}
SIZES = [1e-30, 1e-3, 1e10, 1e17, 1e21, 1e25, 1e30, 3e38]
RATES = [1e-8, 1e-3, 1.0, 1e20, 1e38, float("nan")]


@pytest.mark.parametrize("name", FINITE)
def test_what_an_update_writes_is_finite_or_it_is_not_made(name):
    generator = np.random.default_rng(0)
    masters = [keras.Variable(np.float32([1.0, -0.0, 3.0, -1e-40, 0.1]))]
    optimizer = FINITE[name]()
    update = updates.make(optimizer, masters)
    if type(update) is updates.FusedUpdate:  # it must hold for all finite masters
        masters[0].assign([1.0, -0.0, 3.4e38, -3.4e38, 3e38])
    variables = [*update.slots, masters[0].value]
    rate = optimizer.variables[1]
    assert "learning_rate" in rate.path
    step = tf.function(update)
    scale, made = tf.constant(2.0**-10), {}
    start = [variable.numpy().copy() for variable in variables]
    for size in SIZES:
        for change in RATES:
            grad = size * generator.choice([1.0, -1.0, 0.5], 5)
            scaled = [tf.constant(grad * 2.0**-10, tf.float32)]
            rate.assign(change)
            before = contents(variables)
            largest = tf.reduce_max(tf.abs(scaled[0]))
            applied = bool(step(scaled, scale, tf.constant(True), largest))
            told = f"gradient {size:g}, rate {change:g}"
            if applied:
                for variable in variables:
                    number = np.array(variable)
                    assert variable is rate.value or np.isfinite(number).all(), told
            else:
                assert contents(variables) == before, told
            made[size, change] = applied
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)
    # Nothing that any training could want is refused.
    wanted = {(size, rate) for size in SIZES[:4] for rate in RATES[:3]}
    assert wanted <= {key for key, applied in made.items() if applied}
    assert not any(made[size, RATES[-1]] for size in SIZES)
