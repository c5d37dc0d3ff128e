"""Many devices: the same numbers as on one, on every replica, skips included."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.distributed import strategies

BATCH = 16
STRATEGY = strategies.make("mirrored")
optimizers = keras.optimizers


def bits(values):
    return [np.asarray(v).tobytes() for v in values]


def variables(step):
    return list(step.state.named().values())


def replicas(variable):
    """The exact content of a variable, on each replica."""
    local = STRATEGY.experimental_local_results(variable)
    return [v.numpy().tobytes() for v in local]


def whole_state(step):
    return [v.numpy().tobytes() for v in variables(step)]


def assert_replicas_equal(step):
    for variable in variables(step):
        one, other = replicas(variable)
        assert one == other, variable.name


def pair(model, optimizer, loss, *arguments, **named):
    """The same step on one device and on two; `model` and `optimizer` make them."""
    one = mp_loop.TrainStep(model(), optimizer(), loss, *arguments, **named)
    with STRATEGY.scope():
        two = mp_loop.TrainStep(model(), optimizer(), loss, *arguments, **named)
    return one, two


# A loss that is linear in the outputs of one layer, and small integers: gradients
# do not depend on the weights, and every sum of them is exact in any order.


def integers(seed):
    generator = np.random.default_rng(seed)
    inputs = generator.integers(-3, 4, (BATCH, 6)).astype(np.float32)
    return inputs, generator.integers(-3, 4, (BATCH, 4)).astype(np.float32)


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
    one, two = pair(linear_model, optimizer, linear_loss, **arguments)
    skips = 0
    for seed in range(16):
        inputs, labels = integers(seed)
        if seed == 5:
            inputs[BATCH - 1, 2] = np.inf  # on the second replica only
        mine, other = two(inputs, labels), one(inputs, labels)
        for metric in ("grads_finite", "forward_finite", "loss_scale", "grad_norm"):
            assert bits([mine[metric]]) == bits([other[metric]]), (seed, metric)
        assert whole_state(two) == whole_state(one), seed
        skips += not mine["grads_finite"]
    searches = name != "accumulated by the step"  # overflows by its own scale
    assert (3 <= skips <= 8) if searches else skips == 1
    assert_replicas_equal(two)


# Real layers.


def images(seed=0, batch=BATCH):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(batch, 8, 8, 1)).astype(np.float32)
    return inputs, generator.integers(0, 4, batch)


def network(batch_norm="none", dropout=0.0):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3)]
    if batch_norm != "none":
        synchronized = batch_norm == "synchronized"
        layers.append(keras.layers.BatchNormalization(synchronized=synchronized))
    layers += [keras.layers.ReLU(), keras.layers.Flatten()]
    layers.append(keras.layers.Dense(8, activation="relu", kernel_regularizer="l2"))
    if dropout:
        layers.append(keras.layers.Dropout(dropout, seed=3))
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(4)])


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


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
    """Of `distribution`'s docstring: only the order of sums over rows differs."""
    rate, steps = 0.1, 6
    one, two = pair(
        lambda: network(batch_norm),
        lambda: optimizers.SGD(rate),
        crossentropy(),
        "float32",
    )
    largest = 0.0
    for seed in range(steps):
        batch = images(seed)
        if seed == 3:
            batch[0][-1, 0, 0] = np.nan
        else:
            largest = max(largest, largest_gradient(one.model, *batch))
        mine, other = two(*batch), one(*batch)
        assert bool(mine["grads_finite"]) == bool(other["grads_finite"]) == (seed != 3)
        np.testing.assert_allclose(mine["loss"], other["loss"], rtol=1e-6)
    # A batch norm's statistics are sums over 36 pixels of each row.
    terms = BATCH if batch_norm == "none" else BATCH * 36
    bound = strategies.rounding_bound(rate, steps, terms, largest)
    for mine, other in zip(two.master_weights, one.master_weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=0, atol=bound)
    assert_replicas_equal(two)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_statistics_are_the_mean_of_what_each_replica_would_have_stored(precision):
    def make():
        model = network("own", dropout=0.3)
        return mp_loop.TrainStep(model, optimizers.SGD(0.1), crossentropy(), precision)

    with STRATEGY.scope():
        two = make()
    inputs, labels = images()
    halves = []
    for rows in (slice(0, 8), slice(8, 16)):
        alone = make()
        alone(inputs[rows], labels[rows])
        halves.append([v.numpy() for v in alone.model.non_trainable_weights])
    two(inputs, labels)
    own = [v.numpy() for v in two.model.non_trainable_weights]
    assert bits(halves[0]) != bits(halves[1])
    assert bits(own) == bits([(a + b) / 2 for a, b in zip(*halves, strict=True)])
    assert_replicas_equal(two)
    before = whole_state(two)
    inputs[0] = np.inf
    assert not two(inputs, labels)["grads_finite"]
    changed = [
        v.name
        for v, a, b in zip(variables(two), before, whole_state(two), strict=True)
        if a != b
    ]
    assert all("seed" in n or "step" in n or "over" in n or "Var" in n for n in changed)
    assert_replicas_equal(two)


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

    with STRATEGY.scope():
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
    assert_replicas_equal(two)


def test_many_steps_in_a_call_take_a_distributed_data_set():
    one, two = pair(network, lambda: optimizers.SGD(0.1), crossentropy(), "float32")
    whole = tf.data.Dataset.from_tensor_slices(images(batch=5 * BATCH))
    whole = whole.batch(BATCH, drop_remainder=True)
    losses = [float(one(*batch)["loss"]) for batch in whole]

    def shares(worker, workers, replicas):
        assert (worker, workers, replicas) == (0, 1, 2)
        return whole.unbatch().batch(BATCH // replicas, drop_remainder=True)

    found = []
    for data in (
        STRATEGY.experimental_distribute_dataset(whole),
        strategies.batches(STRATEGY, shares),
    ):
        iterator = iter(data)
        found.append([*two.run(iterator, 2)["loss"], *two.run(iterator, 3)["loss"]])
    np.testing.assert_allclose(found[0], losses, rtol=1e-6)
    assert two._step.experimental_get_tracing_count() == 1
    assert len(found[1]) == 5
    assert_replicas_equal(two)


def test_the_step_has_no_branch_and_one_meeting():
    with STRATEGY.scope():
        step = mp_loop.TrainStep(network("own", 0.3), optimizers.Adam(), crossentropy())
    traced = step._step.get_concrete_function(*map(tf.constant, images()), None).graph
    functions = [traced, *(f.graph for f in traced._functions.values())]
    kinds = {op.type for graph in functions for op in graph.get_operations()}
    assert not kinds & {"If", "StatelessIf", "Switch", "Case"}


REFUSED = {
    "a batch that cannot be shared": lambda step: step(*images(batch=15)),
    "an uneven data set": lambda step: step.run(
        iter(
            STRATEGY.experimental_distribute_dataset(
                tf.data.Dataset.from_tensor_slices(images(batch=15)).batch(15)
            )
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_shares_of_unequal_size_are_refused(name):
    with STRATEGY.scope():
        step = mp_loop.TrainStep(
            network(), optimizers.SGD(0.1), crossentropy(), "float32"
        )
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError),
        match="shared evenly among the 2 replicas",
    ):
        REFUSED[name](step)


def test_what_was_made_outside_the_scope_is_refused():
    alone, optimizer = network(), optimizers.SGD(0.1)
    with STRATEGY.scope():
        shared = network()
        with pytest.raises(ValueError, match=r"`model` \(none\) must be made in the"):
            mp_loop.TrainStep(alone, optimizers.SGD(0.1), crossentropy())
        with pytest.raises(ValueError, match=r"`optimizer` \(none\) must be made"):
            mp_loop.TrainStep(shared, optimizer, crossentropy())
    with pytest.raises(ValueError, match=r"`model` \(MirroredStrategy\) must be made"):
        mp_loop.TrainStep(shared, optimizers.SGD(0.1), crossentropy())


UNLAWFUL = {
    "keras_arithmetic": ({"keras_arithmetic": True}, r"`keras_arithmetic` \(True\)"),
    "jit_compile": ({"jit_compile": True}, r"`jit_compile` \(True\) is for one"),
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
    with STRATEGY.scope(), pytest.raises(ValueError, match=said):
        mp_loop.TrainStep(
            network("synchronized"), optimizers.SGD(0.1), crossentropy(), **arguments
        )


def test_evaluation_covers_every_example_once():
    with STRATEGY.scope():
        model = network()
        evaluate = mp_loop.EvalStep(
            model, crossentropy(), "sparse_categorical_accuracy"
        )
    inputs, labels = images(batch=37)
    batches = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(9)
    for _ in range(2):  # the second call starts from zero again
        result = evaluate(batches)  # the last batch is one row: one replica has none
        outputs = model(inputs)
        accuracy = np.mean(np.argmax(outputs, -1) == labels)
        np.testing.assert_allclose(result["eval_accuracy"], accuracy, rtol=1e-6)
        expected = crossentropy()(labels, outputs)
        np.testing.assert_allclose(result["eval_loss"], expected, rtol=1e-5)


def test_replicas_that_drift_apart_are_named():
    with STRATEGY.scope():
        step = mp_loop.TrainStep(
            network(), optimizers.SGD(0.1), crossentropy(), "float32"
        )
    workers = strategies.Workers(STRATEGY)
    workers.check_equal(variables(step))
    second = STRATEGY.experimental_local_results(step.master_weights[2])[1]
    second.assign_add(2.0**-24 * tf.ones_like(second))
    with pytest.raises(strategies.ReplicasDiffer, match="1 of 2 replicas hold another"):
        workers.check_equal(variables(step))
    workers._give(variables(step))
    workers.check_equal(variables(step))


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int64"]
)
def test_bits_survive_the_way(dtype):
    values = [0.0, -0.0, 1.5, -3.0, 2.0**-14, 65504.0]
    values += [] if dtype == "int64" else [np.inf, -np.inf, np.nan]
    values = tf.cast(values, dtype)
    there = strategies._from_bits(strategies._to_bits(values), values.dtype)
    assert bits([there]) == bits([values])
