"""Runs other systems' own loss-scaling code beside our presets.

Each test is skipped where its peer is not installed; TensorFlow itself ships
tf_keras' rule. The streams are random, the equality is exact.
"""

import sys

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.step.loss_scale import DynamicLossScale

pytestmark = pytest.mark.peers

# Every case starts somewhere else, and with few or many overflows: some streams
# run into the floor, some into the cap.
STREAMS, STEPS = 1000, 40
LARGEST = float(tf.float32.max)


def _cases(lowest):
    """Yields (initial scale, growth interval, grads_finite [STEPS])."""
    rng = np.random.default_rng(1)
    for _ in range(STREAMS):
        mantissa = rng.choice([1.0, 1.25, 1.5])
        edge = rng.choice([lowest, 2.0**10, 2.0**127])
        exponent = np.log2(edge) + rng.integers(-3, 4)
        scale = np.clip(mantissa * 2.0**exponent, lowest, LARGEST)
        overflows = rng.choice([0.0, 0.05, 0.3, 1.0])
        finite = rng.random(STEPS) >= overflows
        yield float(scale), int(rng.integers(1, 7)), finite


def _ours(name):
    """A function of (scale, interval, finite) on one compiled graph per interval."""
    graphs = {}

    def run(scale, interval, finite):
        if interval not in graphs:
            rule = DynamicLossScale.preset(name, growth_interval=interval)

            @tf.function
            def scan(scale, finite):
                start = rule.init()._replace(scale=scale)
                return tf.scan(rule.next_state, finite, start).scale

            graphs[interval] = scan
        scales = graphs[interval](tf.constant(scale, tf.float32), tf.constant(finite))
        return scales.numpy().tolist()

    return run


@pytest.fixture
def torch(monkeypatch):
    # Beside TensorFlow, loading triton (which torch tries) crashes the process.
    monkeypatch.setitem(sys.modules, "triton", None)
    return pytest.importorskip("torch")


def test_torch(torch):
    ours = _ours("torch")
    for scale, interval, finite in _cases(lowest=2.0**-60):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=0.0)
        scaler.scale(torch.zeros(1))  # creates the scale
        theirs = []
        for step in finite:
            weight.grad = torch.tensor([0.0 if step else float("inf")])
            scaler.step(optimizer)
            scaler.update()
            theirs.append(scaler.get_scale())
        assert ours(scale, interval, finite) == theirs


def test_torch_reaches_zero_where_our_preset_does_not(torch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-125)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler.scale(torch.zeros(1))
    for _ in range(30):
        weight.grad = torch.tensor([float("nan")])
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 0.0
    assert _ours("torch")(2.0**-125, 4, np.zeros(30, bool))[-1] == 2.0**-126


def test_torch_defaults(torch):
    scaler, rule = torch.amp.GradScaler("cpu"), DynamicLossScale.preset("torch")
    assert rule.initial_scale == scaler.get_scale()
    assert rule.growth_interval == scaler.get_growth_interval()
    assert rule.growth_factor == scaler.get_growth_factor()
    assert rule.backoff_factor == scaler.get_backoff_factor()


def test_jmp():
    jmp = pytest.importorskip("jmp")
    jax = pytest.importorskip("jax")
    ours = _ours("jmp")

    @jax.jit
    def run(loss_scale, finite):
        def step(carry, finite):
            carry = carry.adjust(finite)
            return carry, carry.loss_scale

        return jax.lax.scan(step, loss_scale, finite)[1]

    for scale, interval, finite in _cases(lowest=1.0):
        start = jmp.DynamicLossScale(
            jax.numpy.float32(scale), jax.numpy.int32(0), period=interval
        )
        assert ours(scale, interval, finite) == run(start, finite).tolist()


def test_flax():
    dynamic_scale = pytest.importorskip("flax.training.dynamic_scale")
    jax = pytest.importorskip("jax")
    ours = _ours("flax")

    @jax.jit
    def run(start, finite):
        def step(carry, finite):
            slope = jax.numpy.where(finite, 0.0, jax.numpy.inf)
            carry = carry.value_and_grad(lambda x: x * slope)(0.0).dynamic_scale
            return carry, carry.scale

        return jax.lax.scan(step, start, finite)[1]

    for scale, interval, finite in _cases(lowest=2.0**-126):
        start = dynamic_scale.DynamicScale(
            growth_interval=interval,
            fin_steps=jax.numpy.int32(0),
            scale=jax.numpy.float32(scale),
        )
        assert ours(scale, interval, finite) == run(start, finite).tolist()


def test_flax_defaults():
    dynamic_scale = pytest.importorskip("flax.training.dynamic_scale")
    theirs, rule = dynamic_scale.DynamicScale(), DynamicLossScale.preset("flax")
    assert rule.initial_scale == theirs.scale
    assert rule.growth_interval == theirs.growth_interval
    assert rule.growth_factor == theirs.growth_factor
    assert rule.backoff_factor == theirs.backoff_factor
    assert rule.min_scale == theirs.minimum_scale


def test_tf_keras():
    """tf.compat.v1 holds the rule that tf_keras' LossScaleOptimizer copied."""
    ours = _ours("tf_keras")
    graphs = {}
    for scale, interval, finite in _cases(lowest=1.0):
        if interval not in graphs:
            graphs[interval] = _tf_keras_run(interval)
        peer, run = graphs[interval]
        peer._current_loss_scale.assign(scale)
        peer._num_good_steps.assign(0)
        theirs = run(tf.constant(finite)).numpy().tolist()
        assert ours(scale, interval, finite) == theirs


def _tf_keras_run(interval):
    peer = tf.compat.v1.mixed_precision.DynamicLossScale(increment_period=interval)

    @tf.function
    def run(finite):
        scales = tf.TensorArray(tf.float32, STEPS)
        for i in tf.range(STEPS):
            gradient = tf.where(finite[i], 0.0, float("nan"))
            update, _ = peer.update([gradient])
            with tf.control_dependencies([update]):
                scales = scales.write(i, peer())
        return scales.stack()

    return peer, run


def test_tf_keras_defaults():
    peer = tf.compat.v1.mixed_precision.DynamicLossScale()
    rule = DynamicLossScale.preset("tf_keras")
    assert rule.initial_scale == peer.initial_loss_scale
    assert rule.growth_interval == peer.increment_period
    assert rule.growth_factor == peer.multiplier == 1 / rule.backoff_factor
