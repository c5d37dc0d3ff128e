"""Which weight belongs to which: a model and its twin, of whatever order."""

import gc
import importlib.util
import itertools
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.comparison import bitwise
from mp_loop.config import errors
from mp_loop.models import applications, catalog
from mp_loop.numerics import precision_errors
from mp_loop.precision import coverage, keras_twin, pairing, pairs
from mp_loop.step import keras_step

pytestmark = pytest.mark.usefixtures("same_bits")

L = keras.layers
HALVES = ("float16", "bfloat16")
# Half a unit in the last place.
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


class Chain(keras.Model):
    """Three layers of one shape, called in one order and set in another."""

    def __init__(self, order, shared=False, name="chain"):
        for number in order:
            setattr(self, f"layer_{number}", L.Dense(8, name=f"dense_{number}"))
        inputs = keras.Input((8,))
        x = L.Dropout(0.5, seed=1)(self.layer_0(inputs))
        x = self.layer_2(self.layer_1(x))
        x = self.layer_1(x) if shared else x
        super().__init__(inputs, L.Dense(3, name="head")(x), name=name)


def flat(order, shared):
    model = Chain(order, shared)
    return keras.Model(model.input, model.output)


def nested(order, shared):
    inputs = keras.Input((8,))
    model = Chain(order, shared)
    return keras.Model(inputs, L.Dense(3, name="last")(model(inputs)))


def in_two_models(order, shared):
    """One layer, under one name, in the graphs of two nested models."""
    first = Chain(order, shared)
    inputs = keras.Input((8,))
    own = L.Dense(8, name="dense_0")
    second = keras.Sequential([keras.Input((8,)), own, first.layer_1], name="second")
    both = L.Concatenate()([first(inputs), second(inputs)])
    return keras.Model(inputs, L.Dense(3, name="last")(both))


SHAPES = {
    "as it is": Chain,
    "wrapped": flat,
    "nested": nested,
    "a layer in two models": in_two_models,
}


def random(model, seed=0):
    """Gives every weight other values, small enough to train."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(generator.normal(0.0, 0.4, variable.shape))
    return model


def rows(seed=1, size=16):
    return np.random.default_rng(seed).normal(size=(size, 8)).astype(np.float32)


def assert_near(ours, exact_outputs, dtype, roundings=16):
    outputs = [keras.tree.flatten(x) for x in (ours, exact_outputs)]
    for one, other in zip(*outputs, strict=True):
        one, other = (np.asarray(tf.cast(x, tf.float32)) for x in (one, other))
        bound = roundings * EPSILON[dtype] * max(np.abs(other).max(), 1e-3)
        np.testing.assert_allclose(one, other, atol=bound, rtol=0)


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        pytest.param(
            shape,
            order,
            marks=[] if shape == "as it is" or order[0] == 2 else [pytest.mark.slow],
            id=f"{shape}, {order}",
        )
        for shape in SHAPES
        for order in ORDERS
    ],
)
@pytest.mark.parametrize("shared", [False, True], ids=["once", "called twice"])
def test_attributes_in_any_order(shape, shared, order):
    model, x = random(SHAPES[shape](order, shared)), rows()
    twins = {
        "ours": mp_loop.half_precision_twin(model, "bfloat16"),
        "Keras' bits": keras_twin.keras_twin(model, "bfloat16"),
        "Keras": keras_step.under_policy(model, "mixed_bfloat16"),
    }
    for twin in twins.values():
        assert_near(twin(x), model(x), "bfloat16")
        for master, working in pairs.of_weights(model, twin):
            assert master.path.split("/")[-2:] == working.path.split("/")[-2:]
    wide = precision_errors._in_float64(model)
    np.testing.assert_allclose(wide(x), model(x), atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("arithmetic", ["ours", "Keras' bits", "Keras"])
def test_the_loss_of_the_step_is_the_loss_of_the_model(arithmetic, dtype):
    keras.utils.set_random_seed(0)
    model, x = Chain((2, 0, 1)), rows()
    model.layers[2].rate = 0.0  # the losses are compared
    labels = np.random.default_rng(2).normal(size=(16, 3)).astype(np.float32)
    loss, optimizer = keras.losses.MeanSquaredError(), keras.optimizers.SGD(0.05)
    if arithmetic == "Keras":
        step = keras_step.KerasStep(model, optimizer, loss, dtype, scaling=False)
    else:
        bits = arithmetic == "Keras' bits"
        rule = mp_loop.NoLossScale()
        step = mp_loop.TrainStep(
            model, optimizer, loss, dtype, rule, keras_arithmetic=bits
        )
    losses = [float(step(x, labels)["loss"]) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    trained = float(loss(labels, step.export()(x)))
    # Of the next step, whose forward pass the masters were rounded for.
    again = float(step(x, labels)["loss"])
    np.testing.assert_allclose(again, trained, rtol=32 * EPSILON[dtype])
    random(model, seed=3)
    if arithmetic != "Keras":
        step.reload()
        assert_near(step.twin(x), model(x), dtype)


def test_each_dropout_keeps_its_seed():
    class Twice(keras.Model):
        def __init__(self):
            self.second, self.first = L.Dropout(0.5, seed=2), L.Dropout(0.5, seed=1)
            inputs = keras.Input((8,))
            x = self.second(L.Dense(8)(self.first(inputs)))
            super().__init__(inputs, L.Dense(3)(x))

    model = Twice()
    for twin in (
        mp_loop.half_precision_twin(model, "float16"),
        keras_twin.keras_twin(model, "float16"),
        keras_step.under_policy(model, "mixed_float16"),
    ):
        found = pairs.of_seeds(model, twin)
        assert len(found) == 2 and all(own is not other for own, other in found)
        layers = [x for x in twin.layers if isinstance(x, L.Dropout)]
        states = [np.asarray(x.seed_generator.state)[0] for x in layers]
        assert states == [1, 2]


def test_both_loops_are_compared_weight_by_weight():
    sides = [random(Chain((2, 0, 1))), random(Chain((2, 0, 1)))]
    rule = mp_loop.DynamicLossScale.preset("keras")
    ours = mp_loop.TrainStep(
        sides[0], keras.optimizers.Adam(), "mse", "float16", rule, keras_arithmetic=True
    )
    theirs = keras_step.KerasStep(sides[1], keras.optimizers.Adam(), "mse")
    found = bitwise._pairs(ours, theirs)
    assert len(found) == 8 + 18 + 1 + 2  # weights, slots, seed, scale and counter
    labels = np.random.default_rng(2).normal(size=(16, 3)).astype(np.float32)
    proof = bitwise.prove(ours, theirs, ((rows(i), labels) for i in range(3)), 3)
    assert proof.difference is None and proof.steps == 3, proof


# Twins of the user's own.


class Own(keras.Model):
    """Weights in attributes, in lists and under names; set in the order given."""

    def __init__(self, order, dtype="float32"):
        super().__init__()
        parts = {
            "first": lambda: L.Dense(8, dtype=dtype),
            "more": lambda: [L.Dense(8, dtype=dtype), {"x": L.Dense(8, dtype=dtype)}],
            "last": lambda: L.Dense(3, dtype="float32"),
        }
        for name in order:
            setattr(self, name, parts[name]())

    def call(self, x):
        one, others = self.more
        return self.last(others["x"](one(self.first(x))))


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["first", "more", "last"]))
)
def test_a_twin_of_ones_own_is_paired_by_attribute(order):
    model, twin, x = Own(("first", "more", "last")), Own(order, "float16"), rows()
    model(x), twin(x)
    random(model)
    mp_loop.TrainStep(model, keras.optimizers.SGD(), "mse", twin=twin)
    assert_near(twin(x), model(x), "float16")


def test_a_twin_of_ones_own_is_paired_by_name():
    model = random(
        keras.Sequential(
            [keras.Input((8,)), L.Dense(8, name="a"), L.Dense(8, name="b")]
        )
    )
    inputs = keras.Input((8,))
    a = L.Dense(8, name="a", dtype="float16")
    x = L.Dense(8, name="b", dtype="float32")(L.Rescaling(1.0)(a(inputs)))
    twin = keras.Model(inputs, x)
    mp_loop.TrainStep(model, keras.optimizers.SGD(), "mse", twin=twin)
    assert_near(twin(rows()), model(rows()), "float16")


def test_a_twin_of_ones_own_is_paired_by_its_place_in_the_graph():
    """Nobody named its layers, and Keras numbers them on."""

    def build(dtype):
        inputs = keras.Input((8,))
        x = L.Dense(8, dtype=dtype)(inputs)
        return keras.Model(inputs, x + L.Dense(8, dtype=dtype)(x))

    model, twin = random(build("float32")), build("float16")
    mp_loop.TrainStep(model, keras.optimizers.SGD(), "mse", twin=twin)
    assert_near(twin(rows()), model(rows()), "float16")


def test_a_twin_that_holds_a_twin():
    class Scaled(keras.Model):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def call(self, x):
            return 2.0 * tf.cast(self.inner(x), tf.float32)

    inner = random(Chain((2, 0, 1)))
    model = Scaled(inner)
    twin = Scaled(mp_loop.half_precision_twin(inner, "float16"))
    step = mp_loop.TrainStep(model, keras.optimizers.SGD(), "mse", twin=twin)
    random(model, seed=3)
    step.reload()
    assert_near(twin(rows()), model(rows()), "float16")


def unnamed():
    """Other attributes, and other names."""

    class Other(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = L.Dense(8), L.Dense(8)

        def call(self, x):
            return self.two(self.one(x))

    class Another(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = L.Dense(8), L.Dense(8)

        def call(self, x):
            return self.b(self.a(x))

    model, twin = Other(), Another()
    model(rows()), twin(rows())
    return {"model": model, "twin": twin}


def short_of_one():
    inputs = keras.Input((8,))
    a, b = L.Dense(8, name="a"), L.Dense(8, name="b")
    model = keras.Model(inputs, b(a(inputs)))
    return {"model": model, "twin": keras.Sequential([inputs, L.Dense(8, name="a")])}


def tied():
    """A layer of the graph that another layer holds as well."""

    class Holds(L.Layer):
        def __init__(self, dense):
            super().__init__(name="holds")
            self.dense = dense

        def call(self, x):
            return self.dense(x)

    inputs, dense = keras.Input((8,)), L.Dense(8, name="tied")
    x = Holds(dense)(dense(inputs))
    return {"model": keras.Model(inputs, L.Dense(3)(x))}


REFUSED = {
    "other attributes": (unnamed, r"has no counterpart.*equal attributes, or equal"),
    "a weight too few": (short_of_one, r"`twin` .* b/kernel has no counterpart"),
    "a weight of two layers": (tied, r"tied/kernel belongs to several layers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_paired_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        mp_loop.TrainStep(optimizer=keras.optimizers.SGD(), loss="mse", **make())


def test_a_graph_with_a_call_of_its_own_is_not_taken_apart():
    class Doubled(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2.0 * super().call(inputs, training, mask)

    inputs = keras.Input((8,))
    inner = Doubled(inputs, L.Dense(8)(inputs), name="doubled")
    for model in (inner, keras.Model(inputs, L.Dense(3)(inner(inputs)))):
        twin = mp_loop.half_precision_twin(model, "bfloat16")
        x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
        np.testing.assert_allclose(twin(x), model(x), atol=5e-2)
        assert coverage.coverage(model, "bfloat16").share > 0.7


def test_a_weight_of_two_layers_trains_in_float32():
    model = tied()["model"]
    step = mp_loop.TrainStep(
        model, keras.optimizers.SGD(), "mse", float32_layers="tied|holds"
    )
    assert step.twin.get_layer("tied") is model.get_layer("tied")


def test_layers_beside_the_graph_stay_as_they_are():
    class WithSpare(keras.Model):
        def __init__(self):
            self.spare = L.Dense(8, kernel_regularizer=keras.regularizers.L2(1.0))
            self.spare.build((None, 8))
            inputs = keras.Input((8,))
            super().__init__(inputs, L.Dense(3)(L.Dense(8)(inputs)))

    model = WithSpare()
    twin = mp_loop.half_precision_twin(model, "float16")
    found = pairs.of_weights(model, twin)
    assert len(found) == len(model.weights) == 6
    spare = {id(variable) for variable in model.spare.weights}
    assert all((m is w) for m, w in found if id(m) in spare)
    assert_near(twin(rows()), model(rows()), "float16")
    # Its regularizer counts, as it does in Keras.
    step = mp_loop.TrainStep(
        model, keras.optimizers.SGD(0.0), lambda labels, outputs: 0.0 * outputs
    )
    squares = np.sum(np.square(model.spare.kernel))
    with pytest.warns(UserWarning, match="spare|bias"):
        loss = float(step(rows(), np.zeros(16))["loss"])
    np.testing.assert_allclose(loss, squares, rtol=1e-5)


def test_the_record_keeps_nothing_alive():
    model = keras.Sequential(
        [keras.Input((8,)), L.Dense(8), L.LayerNormalization(), L.Dense(3)]
    )
    twin = mp_loop.half_precision_twin(model, "float16")
    copy = twin.layers[0]
    assert pairing.source(copy) is model.layers[0]
    alive = [weakref.ref(x) for x in (model, twin, copy, model.layers[0])]
    del model, twin, copy
    gc.collect()
    assert [x() for x in alive] == [None] * 4


# Architectures.

CI_APPLICATIONS = ("MobileNetV3Small", "EfficientNetV2B0")
# One of each kind: shared layers, an encoder with a decoder, two towers, prompts,
# windows, relative positions. Convolutions, and a decoder alone, are in
# tests/claims/every_model_test.py, which compares gradients as well.
CI_BACKBONES = (
    *("AlbertBackbone", "BartBackbone", "CLIPBackbone"),
    *("SAMBackbone", "ViTDetBackbone", "XLNetBackbone"),
)


def marked(names, in_ci):
    return [
        pytest.param(name, marks=[] if name in in_ci else [pytest.mark.slow], id=name)
        for name in names
    ]


def wrapped(model):
    return keras.Model(model.input, model.output)


def called(model):
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
        model.input,
    )
    return keras.Model(inputs, model(inputs))


def check_architecture(model, inputs):
    for whole in (model, wrapped(model), called(model)):
        # DeepLabV3 of keras_hub trains some of its layers unless told not to.
        outputs = whole(inputs, training=False)
        assert any(np.abs(x).max() > 0.01 for x in keras.tree.flatten(outputs))
        twin = mp_loop.half_precision_twin(whole, "float16")
        assert_near(twin(inputs, training=False), outputs, "float16", roundings=32)


@pytest.mark.parametrize("name", marked(applications.architectures(), CI_APPLICATIONS))
def test_architectures_of_keras(name):
    keras.utils.set_random_seed(0)
    for size in (32, 71, 75, 224):
        try:
            model = catalog.build(name, (size, size, 3), 5)
            break
        except errors.ModelError:
            assert size < 224
    images = np.random.default_rng(0).uniform(0, 255, (4, size, size, 3))
    images = images.astype(np.float32)
    norms = [x for x in model._flatten_layers() if isinstance(x, L.BatchNormalization)]
    for layer in norms:  # statistics as training would leave them
        layer.momentum = 0.0
    model(images, training=True)
    check_architecture(model, images)


def backbone_names():
    if importlib.util.find_spec("keras_hub") is None:
        return []
    from experiments.applications import backbones

    return marked(backbones.NAMES, CI_BACKBONES)


@pytest.mark.parametrize("name", backbone_names())
def test_backbones_of_keras_hub(name):
    from experiments.applications import backbones

    keras.utils.set_random_seed(0)
    model = backbones.build(name)
    check_architecture(model, backbones.inputs(model))
