"""The step: exact skips, scaling, accumulation, clipping, one trace."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.hardware import devices
from mp_loop.step import keras_step, updates
from tests.support import steps

pytestmark = pytest.mark.usefixtures("same_bits")

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(1e-2, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    "adam_ema": lambda: keras.optimizers.Adam(
        1e-2, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2
    ),
    "adam_clipped": lambda: keras.optimizers.Adam(1e-2, global_clipnorm=0.1),
    "lion": lambda: keras.optimizers.Lion(1e-3),
    "rmsprop": lambda: keras.optimizers.RMSprop(1e-3, momentum=0.9),
    "ftrl": lambda: keras.optimizers.Ftrl(1e-2),
    "adafactor": lambda: keras.optimizers.Adafactor(1e-2),
    "several": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.Adam(1e-2), {"dense.*": keras.optimizers.SGD(0.1)}
        )
    ),
    "scheduled": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, 10)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skip_changes_no_bit_of_what_is_trained(name):
    step = steps.make(optimizer=OPTIMIZERS[name]())
    inputs, labels = steps.data()
    for _ in range(3):
        assert step(inputs, labels)["grads_finite"]
    before = steps.trained(step)
    poisoned = inputs.copy()
    poisoned[1, 2, 3, 0] = np.inf  # batch-norm statistics would turn NaN
    metrics = step(poisoned, labels)
    assert not metrics["grads_finite"]
    assert steps.trained(step) == before
    assert (int(step.state.step), int(step.state.applied_steps)) == (4, 3)
    assert int(step.state.skipped_steps) == 1
    assert step(inputs, labels)["grads_finite"]
    assert steps.trained(step) != before


def test_a_skip_of_the_very_first_step_is_neutral_too():
    step = steps.make()
    before = steps.trained(step)
    step(np.full((steps.BATCH, 8, 8, 1), np.nan, np.float32), steps.data()[1])
    assert steps.trained(step) == before
    assert step(*steps.data())["grads_finite"]
    assert all(np.isfinite(v).all() for v in step.master_weights)


WHO = {
    "float16": {},
    "bfloat16": {"precision": "bfloat16"},
    "float32": {"precision": "float32"},
    "accumulated": {"accumulate_steps": 4},
    "compiled": {"jit_compile": True},
}


@pytest.mark.parametrize("name", WHO)
def test_the_state_counts_who_overflowed(name):
    keras.utils.set_random_seed(0)
    explode = steps.Explode()
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
    model = keras.Sequential([*layers, explode, keras.layers.Dense(4)])
    step = steps.make(model=model, **WHO[name])
    for factor in (1.0, np.inf, np.nan, 1.0, np.inf):
        explode.factor.assign(factor)
        step(*steps.data())
    # The kernel and bias before the explosion; those after it were well.
    assert step.state.overflows.numpy().tolist() == [3, 3, 0, 0]
    assert int(step.state.skipped_steps) == 3
    assert int(step.state.stuck_steps) == 1
    assert int(step.state.forward_overflows) == 0


def test_metrics_tell_a_forward_overflow_from_a_backward_one():
    inputs, labels = steps.data()
    step = steps.make()
    assert step(inputs, labels)["forward_finite"]
    model_overflows = step(2.0**20 * inputs, labels)  # finite in float32
    assert not model_overflows["forward_finite"]
    assert not model_overflows["grads_finite"]
    assert int(step.state.forward_overflows) == int(step.state.skipped_steps) == 1

    step = steps.make(loss_scale=mp_loop.StaticLossScale(2.0**40))
    before = steps.trained(step)
    scale_overflows = step(inputs, labels)
    assert np.isfinite(scale_overflows["loss"]) and scale_overflows["forward_finite"]
    assert not scale_overflows["grads_finite"]
    assert steps.trained(step) == before
    assert int(step.state.forward_overflows) == 0
    assert int(step.state.skipped_steps) == 1


class NanOnce(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return tf.where(tf.equal(step, 1), float("nan"), 0.01)


REASONS = {
    "forward": {"value": np.nan},
    "gradient": {"slope": np.inf},
    "norm": {"slope": 1.9e19, "clip_norm": 1.0, "optimizer": keras.optimizers.SGD},
    "rate": {"optimizer": lambda: keras.optimizers.RMSprop(NanOnce())},
    "update": {"slope": 1e21, "loss_scale": mp_loop.StaticLossScale(2.0**-14)},
    "update, any optimizer": {"slope": 1e21, "optimizer": keras.optimizers.Nadam},
}


@pytest.mark.parametrize("name", REASONS)
def test_a_skip_says_why(name):
    """Also where all gradients are finite, and the weights would not be."""
    arguments = dict(REASONS[name])
    values = {n: arguments.pop(n, 1.0) for n in ("value", "slope")}
    explode = steps.Explode()
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(3), explode, keras.layers.Dense(2)]
    step = mp_loop.TrainStep(
        keras.Sequential(layers),
        arguments.pop("optimizer", keras.optimizers.Adam)(),
        lambda labels, outputs: outputs,
        "float32",
        **arguments,
    )
    inputs, labels = np.ones((8, 4), np.float32), np.zeros((8, 2), np.float32)
    assert step.SKIP_REASONS[int(step(inputs, labels)["skip_reason"])] == ""
    explode.factor.assign(values["slope"])
    before = steps.trained(step)
    data = tf.data.Dataset.from_tensors((values["value"] * inputs, labels))
    metrics = step.run(iter(data.repeat()), 2)
    assert metrics["grads_finite"].numpy().tolist() == [False, False]
    reason = name.split(",")[0]
    assert [step.SKIP_REASONS[i] for i in metrics["skip_reason"]] == [reason] * 2
    assert steps.trained(step) == before
    assert step.state.skip_reasons.numpy().tolist() == [
        2 * (reason == known) for known in step.SKIP_REASONS[1:]
    ]
    explode.factor.assign(1.0)
    if reason != "rate":
        assert step(inputs, labels)["grads_finite"]


WAYS = {
    "plain": {},
    "compiled": {"jit_compile": True},
    "accumulated": {"accumulate_steps": 4},
}


@pytest.mark.parametrize("name", WAYS)
def test_a_label_out_of_range_is_an_error_that_changes_nothing(name):
    step = steps.make(**WAYS[name])
    inputs, labels = steps.data()
    before = steps.bits(step.state.named().values())
    for wrong in (4, -1):
        bad = np.where(np.arange(steps.BATCH) == 3, wrong, labels)
        said = f"from 0 to 3; they are from.*{min(wrong, 0)}.*{max(wrong, 3)}"
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){said}"):
            step(inputs, bad)
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){said}"):
            step.run(iter(tf.data.Dataset.from_tensors((inputs, bad))), 1)
        assert steps.bits(step.state.named().values()) == before
    step(inputs, labels)
    assert int(step.state.step) == 1


@pytest.mark.parametrize("kind", [mp_loop.TrainStep, keras_step.KerasStep])
def test_an_iterator_that_ends_is_told_and_what_it_had_counts(kind):
    def make():
        return kind(dense_model(), keras.optimizers.Adam(), steps.loss(), "float32")

    inputs, labels = steps.data(batch=6)
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(2)
    step, alone = make(), make()
    with pytest.raises(tf.errors.OutOfRangeError, match=r"`steps` \(5\).* of step 3\."):
        step.run(iter(data), 5)
    for batch in data:
        alone(*batch)
    assert steps.trained(step) == steps.trained(alone)
    assert step.run(iter(data), 3)["loss"].shape == (3,)
    assert int(step.state.step) == 6


@pytest.mark.skipif(devices.has_gpu(), reason="GPUs do not check labels")
def test_a_step_that_raises_is_not_counted():
    def loss(labels, outputs):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)

    step = mp_loop.TrainStep(dense_model(), "adam", loss)
    inputs, labels = steps.data()
    before = steps.bits(step.state.named().values())
    with pytest.raises(tf.errors.InvalidArgumentError, match="label value of 4"):
        step(inputs, np.full_like(labels, 4))
    assert steps.bits(step.state.named().values()) == before


def test_random_seeds_move_on_in_a_skip():
    step = steps.make()
    before = steps.bits(step.state.seeds)
    step(np.full((steps.BATCH, 8, 8, 1), np.nan, np.float32), steps.data()[1])
    assert before and steps.bits(step.state.seeds) != before


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "scheduled"])
def test_in_float32_equals_the_plain_keras_update_bit_for_bit(name):
    ours = steps.make("float32", OPTIMIZERS[name](), keras_arithmetic=True)
    plain = steps.conv_model()
    theirs = keras_step.KerasStep(
        plain, OPTIMIZERS[name](), steps.loss(), "float32", scaling=False
    )
    for seed in range(6):
        one, other = ours(*steps.data(seed)), theirs(*steps.data(seed))
        assert np.asarray(one["loss"]).tobytes() == np.asarray(other["loss"]).tobytes()
    assert steps.bits(ours.model.get_weights()) == steps.bits(
        theirs.export().get_weights()
    )


def test_power_of_two_scales_are_undone_exactly():
    weights = []
    for rule in (mp_loop.NoLossScale(), mp_loop.StaticLossScale(2.0**10)):
        step = steps.make("float32", loss_scale=rule)
        for seed in range(4):
            step(*steps.data(seed))
        weights.append(steps.bits(step.master_weights))
    assert weights[0] == weights[1]


def test_gradients_that_underflow_in_float16_are_saved_by_the_scale():
    """Gradients near 1e-9 are zero in float16, whose smallest number is 6e-8."""

    def moved(precision, rule):
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(1)]
        )
        for variable in model.trainable_variables:
            variable.assign(keras.ops.full(variable.shape, 0.5))
        step = mp_loop.TrainStep(
            model,
            keras.optimizers.SGD(1e6),
            lambda labels, outputs: 1e-9 * outputs[:, 0],
            precision,
            rule,
        )
        before = [np.array(v) for v in step.master_weights]
        assert step(tf.ones((8, 4)), tf.zeros(8))["grads_finite"]
        after = [np.array(v) for v in step.master_weights]
        return (after[0] - before[0]).ravel()  # the first kernel's update

    exact = moved("float32", mp_loop.NoLossScale())
    assert (exact != 0).all()
    assert (moved("float16", mp_loop.NoLossScale()) == 0).all()
    scaled = moved("float16", mp_loop.StaticLossScale(2.0**24))
    # Two 16-bit roundings on the way, each of half an epsilon.
    np.testing.assert_allclose(scaled, exact, rtol=2 * 2.0**-10)


def test_the_scale_follows_the_rule_through_real_overflows():
    rule = mp_loop.DynamicLossScale(initial_scale=2.0**24, growth_interval=3)
    step = steps.make(loss_scale=rule)
    state, skips = rule.init(), 0
    for seed in range(25):
        used = float(state.scale)
        metrics = step(*steps.data(seed))
        assert float(metrics["loss_scale"]) == used
        state = rule.next_state(state, metrics["grads_finite"])
        assert [float(v) for v in step.state.loss_scale] == [float(x) for x in state]
        skips += not metrics["grads_finite"]
    assert 3 <= skips <= 15  # it started too high, and found its place


def test_metrics_are_what_they_say():
    step = steps.make("float32", keras.optimizers.SGD(0.1))
    inputs, labels = steps.data()
    with tf.GradientTape() as tape:
        step.twin.layers[-2].seed_generator.state.assign([3, 0])
        value = steps.loss()(labels, step.model(inputs, training=True))
    grads = tape.gradient(value, step.master_weights)
    step.twin.layers[-2].seed_generator.state.assign([3, 0])
    for v in step.model.non_trainable_weights:
        v.assign(keras.ops.zeros(v.shape))
    metrics = step(inputs, labels)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["grad_norm"], tf.linalg.global_norm(grads), rtol=1e-5
    )
    assert float(metrics["learning_rate"]) == np.float32(0.1)
    assert float(metrics["loss_scale"]) == 1.0


def dense_model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(8), keras.layers.Dense(4)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_accumulation_gives_the_gradients_of_the_whole_batch(precision):
    results = []
    for count in (1, 4):
        step = steps.make(
            precision,
            keras.optimizers.SGD(0.1),
            dense_model(),
            accumulate_steps=count,
            loss_scale=mp_loop.StaticLossScale(8.0),
        )
        metrics = step(*steps.data())
        results.append([float(metrics["loss"]), *map(np.array, step.master_weights)])
    # float16: each micro-batch's gradient is rounded once.
    tolerance = 1e-5 if precision == "float32" else 4 * 2.0**-11
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance / 10)


def test_one_bad_micro_batch_skips_the_whole_step_and_counts_once():
    step = steps.make(accumulate_steps=4)
    before = steps.trained(step)
    inputs, labels = steps.data()
    inputs[-1] = np.inf
    assert not step(inputs, labels)["grads_finite"]
    assert steps.trained(step) == before
    assert float(step.loss_scale) == 2.0**14
    assert int(step.state.skipped_steps) == 1


@pytest.mark.parametrize("way", ["static", "unknown", "compiled"])
def test_a_batch_that_cannot_be_split_evenly_is_used_row_by_row(way):
    """The last batch of an epoch: of 10 and 3 rows in 4 micro-batches, and of one."""
    steppers = [
        steps.make(
            "float32",
            keras.optimizers.SGD(0.1),
            dense_model(),
            accumulate_steps=count,
            jit_compile=way == "compiled",
        )
        for count in (1, 4)
    ]
    inputs, labels = steps.data()
    weights = np.linspace(0.0, 2.0, steps.BATCH, dtype=np.float32)
    rows = {"static": (10, 3), "unknown": (16, 10, 1), "compiled": (10,)}[way]
    for count in rows:
        batch = [x[:count] for x in (inputs, labels, weights)]
        if way == "unknown":
            dataset = tf.data.Dataset.from_tensors(tuple(batch)).unbatch().batch(16)
            losses = [float(step.run(iter(dataset), 1)["loss"][0]) for step in steppers]
        else:
            losses = [float(step(*batch)["loss"]) for step in steppers]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    for one, other in zip(*(step.master_weights for step in steppers), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert int(steppers[1].state.skipped_steps) == 0


@pytest.mark.parametrize("by", ["step", "optimizer"])
def test_finite_gradients_of_infinite_norm_are_skipped_when_clipping(by):
    optimizer = keras.optimizers.SGD(
        0.1, global_clipnorm=1.0 if by == "optimizer" else None
    )
    step = mp_loop.TrainStep(
        dense_model(),
        optimizer,
        lambda labels, outputs: 1e25 * outputs[:, 0],
        "float32",
        clip_norm=1.0 if by == "step" else 0.0,
    )
    before = steps.trained(step)
    metrics = step(*steps.data())
    assert np.isinf(metrics["grad_norm"]) and not metrics["grads_finite"]
    assert steps.trained(step) == before


def test_clipping_bounds_the_norm_of_the_update():
    step = steps.make(
        "float32", keras.optimizers.SGD(1.0), dense_model(), clip_norm=0.01
    )
    before = [np.array(v) for v in step.master_weights]
    assert step(*steps.data())["grad_norm"] > 0.01
    moved = [np.array(v) - b for v, b in zip(step.master_weights, before, strict=True)]
    norm = np.sqrt(sum((m.astype(np.float64) ** 2).sum() for m in moved))
    np.testing.assert_allclose(norm, 0.01, rtol=1e-4)


def test_many_steps_in_a_call_equal_single_calls_and_trace_once():
    one, many = steps.make(), steps.make()
    # Of static shape in both: with a known batch size other divisions are folded.
    dataset = tf.data.Dataset.from_tensor_slices(steps.data(batch=12 * steps.BATCH))
    batches = dataset.batch(steps.BATCH, drop_remainder=True)
    losses = [float(one(*batch)["loss"]) for batch in batches]
    iterator = iter(batches)
    stacked = []
    for count in (5, 1, 6):
        stacked += list(many.run(iterator, count)["loss"].numpy())
    assert stacked == losses
    assert steps.trained(one) == steps.trained(many)
    assert one._step.experimental_get_tracing_count() == 1
    assert many._run.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("on_processor", [True, False])
def test_a_step_branches_only_where_that_waits_for_nothing(monkeypatch, on_processor):
    """On a processor the update alone does; elsewhere nothing."""
    monkeypatch.setattr(updates, "_may_branch", lambda variable: on_processor)
    step = steps.make()
    before = steps.trained(step)
    step(np.full((steps.BATCH, 8, 8, 1), np.nan, np.float32), steps.data()[1])
    assert steps.trained(step) == before
    step(*steps.data())
    assert steps.trained(step) != before
    graph = step._step.get_concrete_function(
        *map(tf.constant, steps.data()), None
    ).graph
    functions = [graph, *(f.graph for f in graph._functions.values())]
    kinds = [op.type for g in functions for op in g.get_operations()]
    branches = {"If", "StatelessIf", "Switch", "Case"}
    assert [kind for kind in kinds if kind in branches] == ["If"] * on_processor


def test_runs_under_xla_with_the_same_result():
    plain = steps.make("bfloat16", keras.optimizers.SGD(0.1), dense_model())
    compiled = steps.make(
        "bfloat16", keras.optimizers.SGD(0.1), dense_model(), jit_compile=True
    )
    for seed in range(3):
        one, other = plain(*steps.data(seed)), compiled(*steps.data(seed))
        # XLA may keep intermediate results in float32.
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=2.0**-7)
    before = steps.trained(compiled)
    compiled(np.full((steps.BATCH, 8, 8, 1), np.inf, np.float32), steps.data()[1])
    assert steps.trained(compiled) == before


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_masters_are_float32_move_and_are_what_is_saved(precision, tmp_path):
    model = steps.conv_model(kernel_regularizer="l2")
    step = steps.make(precision, model=model)
    before = steps.bits(step.master_weights)
    for seed in range(3):
        step(*steps.data(seed))
    after = steps.bits(step.master_weights)
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert {v.dtype for v in step.master_weights} == {tf.float32}
    for master, working in zip(step.master_weights, step.working_weights, strict=True):
        assert steps.bits([tf.cast(master, working.dtype)]) == steps.bits([working])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert steps.bits(loaded.get_weights()) == steps.bits(model.get_weights())
    assert {layer.dtype_policy.name for layer in loaded.layers} == {"float32"}


def test_regularizers_are_computed_on_the_masters():
    """In float16 this L2 term overflows: 2^18 squares of 8."""
    model = keras.Sequential(
        [
            keras.Input((512,)),
            keras.layers.Dense(
                512, kernel_regularizer=keras.regularizers.L2(1e-4), name="wide"
            ),
            keras.layers.Dense(4),
        ]
    )
    kernel = model.layers[0].kernel
    kernel.assign(keras.ops.full(kernel.shape, 8.0))
    step = mp_loop.TrainStep(
        model, keras.optimizers.SGD(1.0), lambda y, x: 0.0 * x[:, 0], "float16"
    )
    metrics = step(tf.zeros((4, 512)), tf.zeros(4))
    np.testing.assert_allclose(metrics["loss"], 1e-4 * 64 * 2**18, rtol=1e-5)
    # The gradient is 2 * 1e-4 * 8 everywhere, in float32.
    np.testing.assert_allclose(kernel, 8.0 - 16e-4, rtol=1e-6)


def test_sparse_and_missing_gradients():
    keras.utils.set_random_seed(0)
    words = keras.Input((600,), dtype="int32")
    table = keras.layers.Embedding(3, 2)
    hidden = keras.layers.GlobalAveragePooling1D()(table(words))
    unused = keras.layers.Dense(1, name="unused")
    outputs = keras.layers.Dense(1)(hidden)
    model = keras.Model(words, [outputs, unused(hidden)])
    step = mp_loop.TrainStep(
        model,
        keras.optimizers.SGD(1.0),
        lambda labels, outputs: outputs[0][:, 0],
        "float16",
        mp_loop.StaticLossScale(2.0**10),
    )
    before = np.array(table.embeddings)
    slope = np.array(model.layers[3].kernel)[:, 0]
    idle = steps.bits(unused.weights)
    with pytest.warns(UserWarning, match="unused/kernel"):  # Keras says so, once
        assert step(tf.zeros((4, 600), tf.int32), tf.zeros(4))["grads_finite"]
    # 2,400 equal rows add up to the slope itself, and are summed in float32.
    np.testing.assert_allclose(
        np.array(table.embeddings)[0] - before[0], -slope, rtol=3 * 2.0**-10
    )
    assert steps.bits([np.array(table.embeddings)[1:]]) == steps.bits([before[1:]])
    assert steps.bits(unused.weights) == idle


def test_sample_weights_reach_the_loss():
    step = steps.make("float32", keras.optimizers.SGD(0.0), dense_model())
    inputs, labels = steps.data()
    whole = float(step(inputs, labels, tf.ones(steps.BATCH))["loss"])
    none = float(step(inputs, labels, tf.zeros(steps.BATCH))["loss"])
    assert whole == float(step(inputs, labels)["loss"]) > 0 == none


def test_a_twin_of_ones_own_is_used():
    class Scaled(keras.Model):
        def __init__(self, dtype):
            super().__init__(dtype=dtype)
            self.dense = keras.layers.Dense(2, dtype=dtype)

        def call(self, inputs):
            return 2 * self.dense(inputs)

    model, twin = Scaled("float32"), Scaled("float16")
    model(tf.zeros((1, 3))), twin(tf.zeros((1, 3)))
    optimizer = keras.optimizers.SGD(0.1)
    step = mp_loop.TrainStep(
        model, optimizer, "mse", loss_scale=mp_loop.StaticLossScale(8.0), twin=twin
    )
    assert steps.bits(twin.get_weights()) == steps.bits(
        [v.astype(np.float16) for v in model.get_weights()]
    )
    assert [v.dtype for v in step.working_weights] == [tf.float16] * 2
    before = steps.bits(step.master_weights)
    step(tf.ones((4, 3)), tf.ones((4, 2)))
    assert steps.bits(step.master_weights) != before
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match="must have the weights of `model`"):
        mp_loop.TrainStep(model, keras.optimizers.SGD(0.1), "mse", twin=other)


REFUSED = {
    "precision": ({"precision": "float8"}, r"`precision` \(float8\)"),
    "clip_norm": ({"clip_norm": -1.0}, r"`clip_norm` \(-1.0\)"),
    "clip_nan": ({"clip_norm": float("nan")}, r"`clip_norm` \(nan\)"),
    "accumulate": ({"accumulate_steps": 0}, r"`accumulate_steps` \(0\)"),
    "loss_scale_optimizer": (
        {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())},
        "must not scale the loss",
    ),
    "loss_scale_factor": (
        {"optimizer": keras.optimizers.SGD(loss_scale_factor=2.0)},
        "must not scale the loss",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unlawful_arguments_are_refused_by_name(name):
    arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        steps.make(**arguments)


def test_evaluation_covers_every_example_once():
    model = dense_model()
    inputs, labels = steps.data(batch=37)
    batches = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(16)
    evaluate = mp_loop.EvalStep(model, steps.loss(), "sparse_categorical_accuracy")
    for _ in range(2):  # the second call starts from zero again
        result = evaluate(batches)
        outputs = model(inputs)
        accuracy = np.mean(np.argmax(outputs, -1) == labels)
        np.testing.assert_allclose(result["eval_accuracy"], accuracy, rtol=1e-6)
        np.testing.assert_allclose(
            result["eval_loss"], steps.loss()(labels, outputs), rtol=1e-5
        )
