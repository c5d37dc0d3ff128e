"""Tests of the loss-scale rule: tables, golden traces, properties, refusals."""

import dataclasses
import fractions

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from mp_loop.config import choices
from mp_loop.step import presets
from mp_loop.step.loss_scale import DynamicLossScale, NoLossScale, StaticLossScale

# Streams: "." is a clean step, "x" an overflow.


def _values(state):
    return tuple(field.numpy().item() for field in state)


def _run(rule, stream, state=None):
    """The state after each step, as tuples of Python numbers."""
    state = rule.init() if state is None else state
    states = []
    for step in stream:
        state = rule.next_state(state, step == ".")
        states.append(_values(state))
    return states


def _scales(rule, stream, state=None):
    return [scale for scale, _, _ in _run(rule, stream, state)]


def _long_scales(rule, stream):
    """The scale after each step, the whole stream in one graph."""

    @tf.function
    def run(finite):
        return tf.scan(rule.next_state, finite, rule.init())

    return run(tf.constant([step == "." for step in stream])).scale.numpy()


# The table: one rule, worked by hand, on our code and on Keras'.

TABLE = [
    # id, initial scale, interval, stream, scale and good_steps after each step
    pytest.param(8, 3, "..", [(8, 1), (8, 2)], id="no growth before the interval"),
    pytest.param(8, 3, "...", [(8, 1), (8, 2), (16, 0)], id="growth on step N exactly"),
    pytest.param(
        8, 2, "....", [(8, 1), (16, 0), (16, 1), (32, 0)], id="growth every N steps"
    ),
    pytest.param(8, 1, "...", [(16, 0), (32, 0), (64, 0)], id="interval 1: each step"),
    pytest.param(8, 3, "x", [(4, 0)], id="backoff on an overflow"),
    pytest.param(8, 3, "xxx", [(4, 0), (2, 0), (1, 0)], id="backoff each time"),
    pytest.param(
        8,
        3,
        "..x..",
        [(8, 1), (8, 2), (4, 0), (4, 1), (4, 2)],
        id="an overflow resets the count",
    ),
    pytest.param(
        8,
        2,
        ".x.x..",
        [(8, 1), (4, 0), (4, 1), (2, 0), (2, 1), (4, 0)],
        id="clean steps that are not consecutive do not add up",
    ),
    pytest.param(8, 2, "..x", [(8, 1), (16, 0), (8, 0)], id="backoff undoes growth"),
    pytest.param(
        2, 9, "xxx", [(1, 0), (0.5, 0), (0.25, 0)], id="the scale may fall below 1"
    ),
    pytest.param(
        1000.5, 1, ".x", [(2001, 0), (1000.5, 0)], id="not a power of two, exact"
    ),
]


def _keras_states(initial_scale, interval, stream):
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.0),
        initial_scale=float(initial_scale),
        dynamic_growth_steps=interval,
    )
    weight = keras.Variable([1.0, 1.0])
    optimizer.build([weight])
    states = []
    for step in stream:
        optimizer.apply([tf.constant([0.0, 0.0 if step == "." else np.inf])], [weight])
        scale, counter = optimizer.dynamic_scale, optimizer.step_counter
        states.append((scale.numpy().item(), counter.numpy().item()))
    return states


@pytest.mark.parametrize(("initial_scale", "interval", "stream", "expected"), TABLE)
def test_table_on_our_rule(initial_scale, interval, stream, expected):
    rule = DynamicLossScale(initial_scale, interval)
    assert [state[:2] for state in _run(rule, stream)] == expected


@pytest.mark.parametrize(("initial_scale", "interval", "stream", "expected"), TABLE)
def test_table_on_the_keras_preset(initial_scale, interval, stream, expected):
    rule = DynamicLossScale.preset(
        "keras", initial_scale=initial_scale, growth_interval=interval
    )
    assert [state[:2] for state in _run(rule, stream)] == expected


@pytest.mark.parametrize(("initial_scale", "interval", "stream", "expected"), TABLE)
def test_table_on_keras(initial_scale, interval, stream, expected):
    assert _keras_states(initial_scale, interval, stream) == expected


def test_long_random_stream_is_that_of_keras():
    stream = "".join(np.random.default_rng(0).choice(list("....x"), 300))
    rule = DynamicLossScale.preset("keras", initial_scale=2.0**15, growth_interval=3)
    ours = [state[:2] for state in _run(rule, stream)]
    assert ours == _keras_states(2.0**15, 3, stream)


def test_defaults_are_keras_with_a_floor_and_a_cap():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    rule = DynamicLossScale()
    assert rule.initial_scale == optimizer.initial_scale == 2**15
    assert rule.growth_interval == optimizer.dynamic_growth_steps == 2000
    assert (rule.growth_factor, rule.backoff_factor) == (2.0, 0.5)
    assert (rule.min_scale, rule.max_scale) == (2.0**-14, 2.0**24)
    assert rule.hysteresis == 1


# Presets.

GOLDEN_STREAM = "000001010000000111000000".replace("0", ".").replace("1", "x")
GOLDEN_COMMON = (
    "1024 1024 1024 2048 2048 1024 1024 512 512 512 512 1024 "
    "1024 1024 1024 512 256 128 128 128 128 256 256 256"
)
GOLDEN = {
    "keras": GOLDEN_COMMON,
    "tf_keras": GOLDEN_COMMON,
    "torch": GOLDEN_COMMON,
    "apex": GOLDEN_COMMON,
    "jmp": GOLDEN_COMMON,
    "fairseq": GOLDEN_COMMON,
    "flax": (
        "1024 1024 1024 1024 2048 1024 1024 512 512 512 512 512 "
        "1024 1024 1024 512 256 128 128 128 128 128 256 256"
    ),
    "megatron": (
        "1024 1024 1024 2048 2048 2048 2048 1024 1024 1024 1024 2048 "
        "2048 2048 2048 2048 1024 512 512 512 512 1024 1024 1024"
    ),
    "deepspeed": (
        "1024 1024 1024 1024 2048 2048 2048 1024 1024 1024 1024 1024 "
        "2048 2048 2048 2048 1024 512 512 512 512 512 1024 1024"
    ),
}


def _preset(name, initial_scale, interval, **overrides):
    return DynamicLossScale.preset(
        name, initial_scale=initial_scale, growth_interval=interval, **overrides
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_trace(name):
    expected = [float(scale) for scale in GOLDEN[name].split()]
    assert _scales(_preset(name, 2.0**10, 4), GOLDEN_STREAM) == expected


def test_every_preset_has_a_golden_trace_and_a_flag():
    assert set(presets.PRESETS) == set(GOLDEN)
    assert set(choices.PRESETS) == set(GOLDEN)


@pytest.mark.parametrize(
    ("name", "initial_scale", "interval", "hysteresis"),
    [
        ("keras", 2.0**15, 2000, 1),
        ("tf_keras", 2.0**15, 2000, 1),
        ("torch", 2.0**16, 2000, 1),
        ("apex", 2.0**16, 2000, 1),
        ("megatron", 2.0**32, 1000, 2),
        ("deepspeed", 2.0**16, 1000, 2),
        ("jmp", 2.0**15, 2000, 1),
        ("flax", 2.0**16, 2000, 1),
        ("fairseq", 2.0**15, 2000, 1),
    ],
)
def test_preset_constants(name, initial_scale, interval, hysteresis):
    rule = DynamicLossScale.preset(name)
    assert rule.initial_scale == initial_scale
    assert rule.growth_interval == interval
    assert rule.hysteresis == hysteresis
    assert (rule.growth_factor, rule.backoff_factor) == (2.0, 0.5)


MAX = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("name", "start", "stream", "expected"),
    [
        pytest.param("keras", 2.0**-125, "xx", [2.0**-126] * 2, id="keras: not 0"),
        pytest.param("keras", 2.0**126, "..", [2.0**127] * 2, id="keras: not inf"),
        pytest.param("tf_keras", 3.0, "xxx", [1.5, 1.0, 1.0], id="tf_keras: floor 1"),
        pytest.param("tf_keras", MAX, ".", [MAX], id="tf_keras: refuses inf"),
        pytest.param("torch", 1.0, "xx", [0.5, 0.25], id="torch: no floor"),
        pytest.param("torch", 2.0**-126, "x", [2.0**-126], id="torch: not 0"),
        pytest.param("torch", 2.0**126, "..", [2.0**127] * 2, id="torch: refuses inf"),
        pytest.param(
            "torch", 1.5 * 2.0**127, ".", [1.5 * 2.0**127], id="torch: stays, no clamp"
        ),
        pytest.param("apex", 1.0, "xx", [0.5, 0.25], id="apex: no floor"),
        pytest.param("apex", 3 * 2.0**22, ".", [2.0**24], id="apex: clamps at 2^24"),
        pytest.param("megatron", 3.0, "xxxx", [3, 1.5, 1, 1], id="megatron: floor 1"),
        pytest.param("megatron", 2.0**127, ".", [2.0**127], id="megatron: not inf"),
        pytest.param("deepspeed", 3.0, "xxxx", [3, 1.5, 1, 1], id="deepspeed: floor 1"),
        pytest.param("deepspeed", 2.0**127, "..", [2.0**127] * 2, id="deepspeed: inf"),
        pytest.param("jmp", 3.0, "xxx", [1.5, 1.0, 1.0], id="jmp: floor 1"),
        pytest.param("jmp", MAX, ".", [MAX], id="jmp: refuses inf"),
        pytest.param(
            "flax", 2.0**127, "..x", [2.0**127, MAX, MAX / 2], id="flax: clamps at max"
        ),
        pytest.param("flax", 3 * 2.0**-127, "x", [2.0**-126], id="flax: floor 2^-126"),
        pytest.param(
            "fairseq", 2.0**-12, "xxx", [2.0**-13] * 3, id="fairseq: stays above 1e-4"
        ),
        pytest.param(
            "fairseq",
            3 * 2.0**-13,
            "xx",
            [3 * 2.0**-14] * 2,
            id="fairseq: stays, no clamp",
        ),
    ],
)
def test_preset_edges(name, start, stream, expected):
    """An interval of 1 brings every growth to the edge at once."""
    assert _scales(_preset(name, start, 1), stream) == expected


def test_deepspeed_waits_only_after_an_overflow():
    scales = _scales(_preset("deepspeed", 2.0, 2, hysteresis=1), ".......x....")
    assert scales == [2, 2, 4, 4, 8, 8, 16, 8, 8, 8, 16, 16]


def test_flax_waits_after_growth_too():
    scales = _scales(_preset("flax", 2.0, 2), ".......x....")
    assert scales == [2, 2, 4, 4, 4, 8, 8, 4, 4, 4, 8, 8]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_no_preset_destroys_the_scale(name):
    rule = _preset(name, 2.0**10, 1)
    for pattern in ("x", ".", "..x", "xx."):
        scales = _long_scales(rule, pattern * 600)
        assert rule.min_scale <= scales.min() and scales.max() <= rule.max_scale
        assert np.finfo(np.float32).tiny <= scales.min()
        assert scales.max() <= np.finfo(np.float32).max


def test_unknown_preset_lists_the_names():
    with pytest.raises(ValueError) as error:
        DynamicLossScale.preset("pytorch")
    assert str(error.value) == (
        "`name` (pytorch) must be one of: keras, tf_keras, torch, apex, megatron, "
        "deepspeed, jmp, flax, fairseq."
    )


def test_preset_override_that_breaks_a_law():
    with pytest.raises(ValueError, match="`initial_scale` .0.5. must be from `min_s"):
        DynamicLossScale.preset("jmp", initial_scale=0.5)


# Edges of our own rule.


@pytest.mark.parametrize(
    ("constants", "stream", "expected"),
    [
        pytest.param({"min_scale": 3.0}, "xx.", [4, 3, 6], id="clamped at the floor"),
        pytest.param(
            {"min_scale": 3.0, "clamp_backoff": False}, "xxx", [4, 4, 4], id="kept low"
        ),
        pytest.param({"max_scale": 20.0}, "..x", [16, 20, 10], id="clamped at the cap"),
        pytest.param(
            {"max_scale": 20.0, "clamp_growth": False}, "..x", [16, 16, 8], id="kept"
        ),
        pytest.param({"backoff_factor": 0.25}, "x.", [2, 4], id="own backoff factor"),
        pytest.param({"growth_factor": 3.0}, ".x", [24, 12], id="own growth factor"),
        pytest.param(
            {"hysteresis": 3}, "xxxx", [8, 8, 4, 2], id="hysteresis 3 tolerates two"
        ),
        pytest.param(
            {"hysteresis": 2, "growth_interval": 2},
            "x.x.x..xx",
            [8, 8, 4, 4, 2, 2, 4, 4, 2],
            id="hysteresis is refilled by growth, not by a clean step",
        ),
        pytest.param(
            {"hysteresis": 2, "growth_interval": 2},
            ".x.x",
            [8, 8, 8, 4],
            id="a tolerated overflow resets the count",
        ),
        pytest.param(
            {"hysteresis": 2, "max_scale": 8.0},
            "x.xx",
            [8, 8, 8, 4],
            id="growth refills hysteresis at the cap too",
        ),
    ],
)
def test_constants(constants, stream, expected):
    rule = DynamicLossScale(8.0, **{"growth_interval": 1, **constants})
    assert _scales(rule, stream) == expected


@pytest.mark.parametrize(
    ("mark", "edge"), [("x", "min_scale"), (".", "max_scale")], ids=["floor", "cap"]
)
def test_a_thousand_steps_end_at_the_edge(mark, edge):
    rule = DynamicLossScale(growth_interval=1)
    scales = _long_scales(rule, mark * 1000).tolist()
    assert scales[-1] == getattr(rule, edge)
    assert scales == sorted(scales, reverse=mark == "x")


def test_interval_lowered_in_mid_run():
    """Keras compares with ==, counts past the new interval and never grows."""
    state = DynamicLossScale(8.0, 10).init()
    for _ in range(6):
        state = DynamicLossScale(8.0, 10).next_state(state, True)
    lowered = DynamicLossScale(8.0, 3)
    after = [(16, 0, 1), (16, 1, 1), (16, 2, 1), (32, 0, 1)]
    assert _run(lowered, "....", state) == after


def test_keras_never_grows_after_its_interval_is_lowered():
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.0), initial_scale=8.0, dynamic_growth_steps=10
    )
    weight = keras.Variable([1.0])
    for _ in range(6):
        optimizer.apply([tf.constant([0.0])], [weight])
    optimizer.dynamic_growth_steps = 3
    for _ in range(40):
        optimizer.apply([tf.constant([0.0])], [weight])
    assert optimizer.dynamic_scale.numpy() == 8.0
    assert optimizer.step_counter.numpy() == 46


def test_hysteresis_lowered_in_mid_run():
    state = DynamicLossScale(8.0, hysteresis=9).init()
    rule = DynamicLossScale(8.0, hysteresis=2)
    assert _run(rule, "xxx", state) == [(8, 0, 2), (8, 0, 1), (4, 0, 1)]


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("clamp", [True, False], ids=["clamp", "keep"])
def test_a_ruined_state_heals(clamp, jit_compile):
    rule = DynamicLossScale(growth_interval=1, clamp_growth=clamp, clamp_backoff=clamp)
    step = tf.function(rule.next_state, jit_compile=jit_compile)
    for scale in (0.0, -0.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, 1e-20, 1e30, MAX):
        state = rule.init()._replace(scale=tf.constant(scale, tf.float32))
        for finite in (True, False):
            healed = step(state, tf.constant(finite)).scale.numpy()
            assert rule.min_scale <= healed <= rule.max_scale, (scale, finite)


@pytest.mark.parametrize(
    ("rule", "scale", "expected"),
    [
        (DynamicLossScale(), 2.0**-14, True),
        (DynamicLossScale(), 2.0**-13, False),
        (DynamicLossScale(2.0, min_scale=1.0, clamp_backoff=False), 1.5, True),
        (DynamicLossScale(2.0, min_scale=1.0, clamp_backoff=False), 2.0, False),
        (DynamicLossScale.preset("fairseq"), 2.0**-13, True),
        (DynamicLossScale.preset("fairseq"), 2.0**-12, False),
        (StaticLossScale(128.0), 128.0, True),
        (NoLossScale(), 1.0, True),
    ],
)
def test_at_floor(rule, scale, expected):
    state = rule.init()._replace(scale=tf.constant(scale, tf.float32))
    assert rule.at_floor(state).numpy() == expected
    assert (rule.next_state(state, False).scale.numpy() == scale) == expected


# Properties, against a model in plain Python and numpy float32.


def _model(rule, stream):
    """The docstring as loops and ifs."""
    f32 = np.float32
    low, high = f32(rule.min_scale), f32(rule.max_scale)
    scale, good, tolerated = f32(rule.initial_scale), 0, rule.hysteresis - 1
    wait = rule.wait_after_overflow
    states = []
    for step in stream:
        if step == "x":
            good, wait = 0, rule.wait_after_overflow
            if tolerated:
                tolerated -= 1
            else:
                lower = scale * f32(rule.backoff_factor)
                if lower >= low:
                    scale = lower
                elif rule.clamp_backoff:
                    scale = low
        elif wait:
            wait -= 1
        else:
            good += 1
        if step == "." and good == rule.growth_interval:
            good, wait, tolerated = 0, rule.wait_after_growth, rule.hysteresis - 1
            with np.errstate(over="ignore"):
                higher = scale * f32(rule.growth_factor)
            if higher <= high:
                scale = higher
            elif rule.clamp_growth:
                scale = high
        states.append((scale.item(), good - wait, tolerated + 1))
    return states


def _floats(least, most):
    return st.floats(least, most, width=32, allow_subnormal=False)


@st.composite
def _rules(draw):
    positive = _floats(2.0**-126, MAX)
    low, start, high = sorted(draw(st.tuples(positive, positive, positive)))
    return DynamicLossScale(
        initial_scale=start,
        growth_interval=draw(st.integers(1, 5)),
        growth_factor=draw(st.just(2.0) | _floats(1.0000001192092896, 2.0**40)),
        backoff_factor=draw(st.just(0.5) | _floats(2.0**-40, 0.9999999403953552)),
        min_scale=low,
        max_scale=high,
        hysteresis=draw(st.integers(1, 3)),
        clamp_growth=draw(st.booleans()),
        clamp_backoff=draw(st.booleans()),
        wait_after_overflow=draw(st.integers(0, 2)),
        wait_after_growth=draw(st.integers(0, 2)),
    )


_PROPERTY = hypothesis.settings(
    deadline=None, derandomize=True, database=None, max_examples=120
)
_STREAMS = st.text("...x", min_size=1, max_size=24)


@_PROPERTY
@hypothesis.given(_rules(), _STREAMS)
def test_any_rule_on_any_stream(rule, stream):
    states = _run(rule, stream)
    assert states == _model(rule, stream)

    before = np.float32(rule.initial_scale).item()
    clean = -rule.wait_after_overflow  # clean steps in a row that count
    for step, (scale, _, hysteresis) in zip(stream, states, strict=True):
        clean = clean + 1 if step == "." else -rule.wait_after_overflow
        assert np.isfinite(scale) and rule.min_scale <= scale <= rule.max_scale
        assert 1 <= hysteresis <= rule.hysteresis
        if scale > before:
            assert clean == rule.growth_interval
        if scale < before:
            assert step == "x"
        if clean == rule.growth_interval:
            clean = -rule.wait_after_growth
        before = scale


@hypothesis.settings(_PROPERTY, max_examples=10)
@hypothesis.given(_rules(), st.text("...x", min_size=24, max_size=24))
def test_eager_graph_and_xla_agree(rule, stream):
    graph = tf.function(rule.next_state)
    xla = tf.function(rule.next_state, jit_compile=True)
    state = rule.init()
    for step in stream:
        finite = tf.constant(step == ".")
        after = rule.next_state(state, finite)
        assert _values(after) == _values(graph(state, finite))
        assert _values(after) == _values(xla(state, finite))
        state = after


def test_next_state_reads_nothing_on_the_host():
    """No cond, no while: only selects and arithmetic."""
    graph = tf.function(DynamicLossScale.preset("deepspeed").next_state)
    concrete = graph.get_concrete_function(
        DynamicLossScale().init(), tf.TensorSpec([], tf.bool)
    )
    kinds = {op.type for op in concrete.graph.get_operations()}
    assert not [kind for kind in kinds if "If" in kind or "While" in kind]
    assert "SelectV2" in kinds


def test_state_dtypes_and_shapes():
    for rule in (DynamicLossScale(), StaticLossScale(8), NoLossScale()):
        for state in (rule.init(), rule.next_state(rule.init(), False)):
            assert [(t.dtype, t.shape.rank) for t in state] == [
                (tf.float32, 0),
                (tf.int32, 0),
                (tf.int32, 0),
            ]


def test_next_state_is_pure():
    rule = DynamicLossScale()
    state = rule.init()
    before = _values(state)
    assert _values(rule.next_state(state, False)) != before
    assert _values(state) == before
    assert _values(rule.next_state(state, False)) == _values(
        rule.next_state(state, False)
    )


# Refusals.

_FLOATS = (
    "initial_scale",
    "growth_factor",
    "backoff_factor",
    "min_scale",
    "max_scale",
)
_INTEGERS = ("growth_interval", "hysteresis", "wait_after_overflow")
_BAD_FLOATS = [
    np.nan,
    np.inf,
    -np.inf,
    0,
    0.0,
    -2.0,
    True,
    "2",
    None,
    1e39,
    10**400,
    1e-39,
    1j,
]
_BAD_INTEGERS = [-1, True, 1.0, 2.5, np.nan, np.inf, "3", None, 2**31]


@pytest.mark.parametrize("value", _BAD_FLOATS, ids=lambda v: f"{v!s:.9}")
@pytest.mark.parametrize("name", _FLOATS)
def test_refused_float(name, value):
    with pytest.raises(ValueError) as error:
        DynamicLossScale(**{name: value})
    assert str(error.value).startswith(f"`{name}` ({value}) must be ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", _BAD_INTEGERS, ids=str)
@pytest.mark.parametrize("name", (*_INTEGERS, "wait_after_growth"))
def test_refused_integer(name, value):
    with pytest.raises(ValueError) as error:
        DynamicLossScale(**{name: value})
    assert str(error.value).startswith(f"`{name}` ({value}) must be ")


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"growth_interval": 0}, "`growth_interval` (0) must be at least 1."),
        ({"hysteresis": 0}, "`hysteresis` (0) must be at least 1."),
        (
            {"growth_factor": 1},
            "`growth_factor` (1.0) must be greater than 1 in float32.",
        ),
        (
            {"growth_factor": 0.5},
            "`growth_factor` (0.5) must be greater than 1 in float32.",
        ),
        (
            {"growth_factor": 1 + 1e-9},
            "`growth_factor` (1.000000001) must be greater than 1 in float32.",
        ),
        (
            {"backoff_factor": 1.0},
            "`backoff_factor` (1.0) must be less than 1 in float32.",
        ),
        (
            {"backoff_factor": 2.0},
            "`backoff_factor` (2.0) must be less than 1 in float32.",
        ),
        (
            {"backoff_factor": 1 - 1e-9},
            "`backoff_factor` (0.999999999) must be less than 1 in float32.",
        ),
        (
            {"max_scale": 2.0**-15},
            "`max_scale` (3.0517578125e-05) must be at least `min_scale` "
            "(6.103515625e-05).",
        ),
        (
            {"initial_scale": 2.0**-15},
            "`initial_scale` (3.0517578125e-05) must be from `min_scale` "
            "(6.103515625e-05) to `max_scale` (16777216.0).",
        ),
        (
            {"initial_scale": 2.0**25},
            "`initial_scale` (33554432.0) must be from `min_scale` "
            "(6.103515625e-05) to `max_scale` (16777216.0).",
        ),
        ({"clamp_growth": 1}, "`clamp_growth` (1) must be True or False."),
        ({"clamp_backoff": None}, "`clamp_backoff` (None) must be True or False."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused_constants(constants, message):
    with pytest.raises(ValueError) as error:
        DynamicLossScale(**constants)
    assert str(error.value) == message


@pytest.mark.parametrize("value", _BAD_FLOATS, ids=lambda v: f"{v!s:.9}")
def test_refused_static_scale(value):
    with pytest.raises(ValueError) as error:
        StaticLossScale(value)
    assert str(error.value).startswith(f"`scale` ({value}) must be ")


@pytest.mark.parametrize(
    "constants",
    [
        {"initial_scale": 8, "growth_factor": 2},
        {"initial_scale": np.float32(8), "growth_interval": np.int64(2000)},
        {"initial_scale": np.float64(8), "backoff_factor": fractions.Fraction(1, 2)},
    ],
    ids=["int", "numpy", "fraction"],
)
def test_any_kind_of_number_is_taken(constants):
    rule = DynamicLossScale(**constants)
    assert rule == DynamicLossScale(8.0)
    assert _run(rule, ".x") == _run(DynamicLossScale(8.0), ".x")


def test_edges_of_the_law_are_lawful():
    DynamicLossScale(8.0, min_scale=8.0, max_scale=8.0)
    DynamicLossScale(2.0**-126, min_scale=2.0**-126)
    DynamicLossScale(2.0**127, max_scale=MAX, growth_interval=2**31 - 1)


@pytest.mark.parametrize("rule", [DynamicLossScale(), StaticLossScale(8.0)], ids=str)
def test_frozen(rule):
    for field in dataclasses.fields(rule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, field.name, 1)
    assert hash(rule) == hash(dataclasses.replace(rule))


# The rules that do not move.


@pytest.mark.parametrize(
    ("rule", "scale"),
    [(StaticLossScale(128.0), 128.0), (StaticLossScale(2), 2.0), (NoLossScale(), 1.0)],
    ids=["static", "static int", "none"],
)
def test_static_rules(rule, scale):
    assert _scales(rule, "..xx.") == [scale] * 5
    assert rule.min_scale == scale
    restored = DynamicLossScale(64.0).init()  # a checkpoint of another rule
    assert _scales(rule, ".x", restored) == [scale] * 2


def test_no_loss_scale_takes_no_arguments():
    with pytest.raises(TypeError):
        NoLossScale(2.0)
    assert repr(NoLossScale()) == "NoLossScale()"
    assert NoLossScale() == NoLossScale()
