"""Many devices: the same numbers as on one, on every replica, skips included."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.distributed import replicas
from tests.support import two_devices

optimizers = keras.optimizers


# A loss that is linear in the outputs of one layer, and small integers: gradients
# do not depend on the weights, and every sum of them is exact in any order.


def integers(seed):
    generator = np.random.default_rng(seed)
    inputs = generator.integers(-3, 4, (two_devices.BATCH, 6)).astype(np.float32)
    return inputs, generator.integers(-3, 4, (two_devices.BATCH, 4)).astype(np.float32)


def linear_model():
    keras.utils.set_random_seed(0)
    # The last layer stays in float32: the one that learns must not be it.
    layers = [keras.layers.Dense(4), keras.layers.Activation("linear")]
    return keras.Sequential([keras.Input((6,)), *layers])


def linear_loss(labels, outputs):
    return tf.reduce_sum(labels * outputs, -1)


EXACT = {
    "momentum": (lambda: optimizers.SGD(0.1, 0.9), {}),
    "adamw": (lambda: optimizers.AdamW(1e-2, weight_decay=0.1), {}),
    "clipped by the step": (lambda: optimizers.Adam(1e-2), {"clip_norm": 0.5}),
    # Micro-batches hold other rows than on one device: at the very edge of float16
    # the sum over theirs may overflow where the others' does not.
    "accumulated by the step": (
        lambda: optimizers.SGD(0.1),
        {
            "accumulate_steps": 4,
            "loss_scale": mp_loop.DynamicLossScale(
                initial_scale=2.0, growth_interval=2
            ),
        },
    ),
    "compiled": (
        lambda: optimizers.AdamW(1e-2, weight_decay=0.1),
        {
            "jit_compile": True,
            "clip_norm": 0.5,
            "accumulate_steps": 4,
            "loss_scale": mp_loop.DynamicLossScale(
                initial_scale=2.0, growth_interval=2
            ),
        },
    ),
    "clipped by Keras": (lambda: optimizers.Adam(1e-2, global_clipnorm=0.5), {}),
    "in 16 bits": (lambda: optimizers.Adam(1e-2), {"all_reduce_dtype": "float16"}),
    "averaged": (
        lambda: optimizers.Adam(
            1e-2, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2
        ),
        {},
    ),
    "accumulated by Keras": (
        lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
        {},
    ),
    "scheduled": (
        lambda: optimizers.RMSprop(optimizers.schedules.CosineDecay(0.1, 10)),
        {},
    ),
}
SLOW_EXACT = {
    "clipped each": (lambda: optimizers.SGD(0.1, clipnorm=0.1), {}),
    "amsgrad": (lambda: optimizers.Adam(1e-2, amsgrad=True), {}),
    "nadam": (lambda: optimizers.Nadam(1e-2), {}),
    "lion": (lambda: optimizers.Lion(1e-3), {}),
    "lamb": (lambda: optimizers.Lamb(1e-2), {}),
    "ftrl": (lambda: optimizers.Ftrl(1e-2), {}),
    "adafactor": (lambda: optimizers.Adafactor(1e-2), {}),
    "adagrad": (lambda: optimizers.Adagrad(1e-2), {}),
    "adadelta": (lambda: optimizers.Adadelta(1e-2), {}),
}


@pytest.mark.parametrize(
    "name",
    [*EXACT, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_EXACT)],
)
def test_two_devices_give_the_bits_of_one(name):
    """Weights, slots, scale, counters; overflows, and an inf on one replica only."""
    optimizer, arguments = (EXACT | SLOW_EXACT)[name]
    rule = mp_loop.DynamicLossScale(initial_scale=2.0**12, growth_interval=2)
    arguments = {"loss_scale": rule} | arguments
    one, two = two_devices.pair(linear_model, optimizer, linear_loss, **arguments)
    skips = 0
    for seed in range(16):
        inputs, labels = integers(seed)
        if seed == 5:
            inputs[two_devices.BATCH - 1, 2] = np.inf  # on the second replica only
        mine, other = two(inputs, labels), one(inputs, labels)
        for metric in ("grads_finite", "forward_finite", "loss_scale", "grad_norm"):
            assert two_devices.bits([mine[metric]]) == two_devices.bits(
                [other[metric]]
            ), (seed, metric)
        assert two_devices.whole_state(two) == two_devices.whole_state(one), seed
        skips += not mine["grads_finite"]
    searches = arguments["loss_scale"] is rule  # overflows by its own scale
    assert (3 <= skips <= 8) if searches else skips == 1
    two_devices.assert_replicas_equal(two)


# Real layers.


def largest_gradient(model, inputs, labels):
    """The largest gradient of one example, over examples and weights."""
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(
            labels, model(inputs, training=True), from_logits=True
        )
    found = tape.jacobian(losses, [v.value for v in model.trainable_variables])
    return max(float(tf.reduce_max(tf.abs(grad))) for grad in found)


@pytest.mark.parametrize("batch_norm", ["none", "synchronized"])
def test_float32_weights_stay_within_the_bound(batch_norm):
    """Of `rounding_bound`: only the order of sums over rows differs."""
    rate, steps = 0.1, 6
    one, two = two_devices.pair(
        lambda: two_devices.network(batch_norm),
        lambda: optimizers.SGD(rate),
        two_devices.crossentropy(),
        "float32",
        metrics=["accuracy"],
    )
    largest = 0.0
    for seed in range(steps):
        batch = two_devices.images(seed)
        if seed == 3:
            batch[0][-1, 0, 0] = np.nan
        else:
            largest = max(largest, largest_gradient(one.model, *batch))
        mine, other = two(*batch), one(*batch)
        assert bool(mine["grads_finite"]) == bool(other["grads_finite"]) == (seed != 3)
        np.testing.assert_allclose(mine["loss"], other["loss"], rtol=1e-6)
        assert mine["accuracy"] == other["accuracy"]  # of 16 rows: exact
    # A batch norm's statistics are sums over 36 pixels of each row.
    terms = two_devices.BATCH if batch_norm == "none" else two_devices.BATCH * 36
    bound = replicas.rounding_bound(rate, steps, terms, largest)
    for mine, other in zip(two.master_weights, one.master_weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=0, atol=bound)
    two_devices.assert_replicas_equal(two)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_statistics_are_the_mean_of_what_each_replica_would_have_stored(precision):
    def make():
        model = two_devices.network("own", dropout=0.3)
        return mp_loop.TrainStep(
            model, optimizers.SGD(0.1), two_devices.crossentropy(), precision
        )

    with two_devices.STRATEGY.scope():
        two = make()
    inputs, labels = two_devices.images()
    halves = []
    for rows in (slice(0, 8), slice(8, 16)):
        alone = make()
        alone(inputs[rows], labels[rows])
        halves.append([v.numpy() for v in alone.model.non_trainable_weights])
    two(inputs, labels)
    own = [v.numpy() for v in two.model.non_trainable_weights]
    assert two_devices.bits(halves[0]) != two_devices.bits(halves[1])
    assert two_devices.bits(own) == two_devices.bits(
        [(a + b) / 2 for a, b in zip(*halves, strict=True)]
    )
    two_devices.assert_replicas_equal(two)
    before = two_devices.whole_state(two)
    inputs[0] = np.inf
    assert not two(inputs, labels)["grads_finite"]
    changed = [
        v.name
        for v, a, b in zip(
            two_devices.variables(two),
            before,
            two_devices.whole_state(two),
            strict=True,
        )
        if a != b
    ]
    moves = ("seed", "step", "over", "skip", "Var")
    assert all(any(part in n for part in moves) for n in changed)
    two_devices.assert_replicas_equal(two)


def test_what_exchanges_numbers_runs_without_xla(caplog):
    """Synchronized batch norm in the first half, Keras' optimizer in the second."""
    trained = []
    for jit_compile in (True, False):
        with two_devices.STRATEGY.scope():
            step = mp_loop.TrainStep(
                two_devices.network("synchronized"),
                optimizers.Lion(1e-3),
                two_devices.crossentropy(),
                jit_compile=jit_compile,
            )
        for seed in range(2):
            assert step(*two_devices.images(seed))["grads_finite"]
        two_devices.assert_replicas_equal(step)
        trained.append(two_devices.whole_state(step))
    assert trained[0] == trained[1]
    parts = ("The forward and backward pass", "The update")
    assert [r.getMessage() for r in caplog.records if "XLA" in r.getMessage()] == [
        f"{part} runs without XLA, which cannot exchange numbers between replicas."
        for part in parts
    ]


def test_each_replica_drops_units_of_its_own():
    """Equal rows on both replicas; the first draws what one device would."""
    keras.utils.set_random_seed(0)

    def make():
        layers = [keras.layers.Dropout(0.5, seed=3), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((64,)), *layers])
        return mp_loop.TrainStep(
            model,
            optimizers.SGD(1.0),
            lambda y, x: x[:, 0],
            "float32",
            accumulate_steps=2,
        )

    with two_devices.STRATEGY.scope():
        two = make()
    one = make()
    row, zeros = np.ones((1, 64), np.float32), np.zeros((1, 64), np.float32)

    def moved(step, rows):
        kernel = step.master_weights[0]
        before = kernel.numpy()
        step(np.concatenate(rows), np.zeros(len(rows), np.float32))
        return (kernel.numpy() - before).ravel() != 0

    # Only the first replica's rows, then only the second's, from the same seeds.
    seeds = [v.numpy() for v in two.state.seeds]
    first = moved(two, [row, row, zeros, zeros])
    assert [v.numpy()[1] for v in two.state.seeds] == [seeds[0][1] + 2]
    for variable, value in zip(two.state.seeds, seeds, strict=True):
        variable.assign(value)
    second = moved(two, [zeros, zeros, row, row])
    assert first.tolist() == moved(one, [row, row]).tolist() != second.tolist()
    two_devices.assert_replicas_equal(two)


def test_the_step_has_no_branch():
    with two_devices.STRATEGY.scope():
        step = mp_loop.TrainStep(
            two_devices.network("own", 0.3),
            optimizers.Adam(),
            two_devices.crossentropy(),
        )
    traced = step._step.get_concrete_function(
        *map(tf.constant, two_devices.images()), None
    ).graph
    functions = [traced, *(f.graph for f in traced._functions.values())]
    kinds = {op.type for graph in functions for op in graph.get_operations()}
    assert not kinds & {"If", "StatelessIf", "Switch", "Case"}


REFUSED = {
    "a batch that cannot be shared": lambda step: step(*two_devices.images(batch=15)),
    "an uneven data set": lambda step: step.run(
        iter(
            two_devices.STRATEGY.experimental_distribute_dataset(
                tf.data.Dataset.from_tensor_slices(two_devices.images(batch=15)).batch(
                    15
                )
            )
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_shares_of_unequal_size_are_refused(name):
    with two_devices.STRATEGY.scope():
        step = mp_loop.TrainStep(
            two_devices.network(),
            optimizers.SGD(0.1),
            two_devices.crossentropy(),
            "float32",
        )
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError),
        match="shared evenly among the 2 replicas",
    ):
        REFUSED[name](step)


def test_what_was_made_outside_the_scope_is_refused():
    alone, optimizer = two_devices.network(), optimizers.SGD(0.1)
    with two_devices.STRATEGY.scope():
        shared = two_devices.network()
        with pytest.raises(ValueError, match=r"`model` \(none\) must be made in the"):
            mp_loop.TrainStep(alone, optimizers.SGD(0.1), two_devices.crossentropy())
        with pytest.raises(ValueError, match=r"`optimizer` \(none\) must be made"):
            mp_loop.TrainStep(shared, optimizer, two_devices.crossentropy())
    with pytest.raises(ValueError, match=r"`model` \(MirroredStrategy\) must be made"):
        mp_loop.TrainStep(shared, optimizers.SGD(0.1), two_devices.crossentropy())


UNLAWFUL = {
    "keras_arithmetic": ({"keras_arithmetic": True}, r"`keras_arithmetic` \(True\)"),
    "all_reduce_dtype": (
        {"all_reduce_dtype": "int8"},
        r"`all_reduce_dtype` \(int8\) must be one of",
    ),
    "synchronized": (
        {"accumulate_steps": 2},
        r"`accumulate_steps` \(2\) must be 1 with synchronized batch norm",
    ),
}


@pytest.mark.parametrize("name", UNLAWFUL)
def test_what_has_no_place_under_a_strategy_is_refused_by_name(name):
    arguments, said = UNLAWFUL[name]
    with two_devices.STRATEGY.scope(), pytest.raises(ValueError, match=said):
        mp_loop.TrainStep(
            two_devices.network("synchronized"),
            optimizers.SGD(0.1),
            two_devices.crossentropy(),
            **arguments,
        )


def test_evaluation_covers_every_example_once():
    with two_devices.STRATEGY.scope():
        model = two_devices.network()
        evaluate = mp_loop.EvalStep(
            model, two_devices.crossentropy(), "sparse_categorical_accuracy"
        )
    inputs, labels = two_devices.images(batch=37)
    batches = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(9)
    for _ in range(2):  # the second call starts from zero again
        result = evaluate(batches)  # the last batch is one row: one replica has none
        outputs = model(inputs)
        accuracy = np.mean(np.argmax(outputs, -1) == labels)
        np.testing.assert_allclose(result["eval_accuracy"], accuracy, rtol=1e-6)
        expected = two_devices.crossentropy()(labels, outputs)
        np.testing.assert_allclose(result["eval_loss"], expected, rtol=1e-5)
