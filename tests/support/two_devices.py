"""The same step on one device and on two, for tests."""

import keras
import numpy as np

import mp_loop
from mp_loop.distributed import strategies

BATCH = 16
STRATEGY = strategies.make("mirrored")


def bits(values):
    """The exact content of values."""
    return [np.asarray(v).tobytes() for v in values]


def variables(step):
    """Every variable of a step's state."""
    return list(step.state.named().values())


def on_each_replica(variable):
    """The exact content of a variable, on each replica."""
    local = STRATEGY.experimental_local_results(variable)
    return [v.numpy().tobytes() for v in local]


def whole_state(step):
    """The exact content of a step's state."""
    return [v.numpy().tobytes() for v in variables(step)]


def assert_replicas_equal(step):
    """Fails unless both replicas hold the same bits."""
    for variable in variables(step):
        one, other = on_each_replica(variable)
        assert one == other, variable.name


def pair(model, optimizer, loss, *arguments, **named):
    """The same step on one device and on two; `model` and `optimizer` make them."""
    one = mp_loop.TrainStep(model(), optimizer(), loss, *arguments, **named)
    with STRATEGY.scope():
        two = mp_loop.TrainStep(model(), optimizer(), loss, *arguments, **named)
    return one, two


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
