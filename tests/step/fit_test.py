"""`model.fit` with our step: the same bits, and everything else as it was."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.step import fit

pytestmark = pytest.mark.usefixtures("same_bits")

BATCH, COUNT, EPOCHS = 16, 64, 3
RULE = mp_loop.DynamicLossScale(2.0**17, growth_interval=3)


def data():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(COUNT, 8, 8, 1)).astype(np.float32)
    return inputs, generator.integers(0, 4, COUNT)


def make_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3, seed=3),
            keras.layers.Dense(4),
        ]
    )


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(precision="float16", rule=RULE, metrics=(), **arguments):
    model = mp_loop.for_fit(make_model(), precision, rule)
    model.compile(keras.optimizers.Adam(1e-2), loss(), metrics=metrics, **arguments)
    return model


def fitted(model, epochs=EPOCHS, **arguments):
    inputs, labels = data()
    return model.fit(
        inputs, labels, BATCH, epochs, shuffle=False, verbose=0, **arguments
    )


def stepped(precision="float16", rule=RULE, weights=None):
    """The same training by `TrainStep`."""
    inputs, labels = data()
    step = mp_loop.TrainStep(
        make_model(), keras.optimizers.Adam(1e-2), loss(), precision, rule
    )
    for _ in range(EPOCHS):
        for i in range(0, COUNT, BATCH):
            rows = slice(i, i + BATCH)
            part = None if weights is None else weights[rows]
            step(inputs[rows], labels[rows], part)
    return step


def assert_equal(model, step):
    assert int(model.mixed_precision.step.state.skipped_steps) == int(
        step.state.skipped_steps
    )
    ours, theirs = model.mixed_precision.step.state, step.state
    for name in ("master_weights", "other_weights", "slots", "seeds", "loss_scale"):
        pairs = zip(getattr(ours, name), getattr(theirs, name), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a.numpy(), b.numpy(), name)


SAMPLE_WEIGHT = np.linspace(0.5, 2, COUNT).astype(np.float32)
CLASS_WEIGHT = {0: 1.0, 1: 2.0, 2: 0.5, 3: 1.0}
SAME = {
    "plain": ({}, {}, None),
    "several steps in a call": ({"steps_per_execution": 3}, {}, None),
    "eager": ({"run_eagerly": True}, {}, None),
    "sample_weight": ({}, {"sample_weight": SAMPLE_WEIGHT}, SAMPLE_WEIGHT),
    "class_weight": (
        {},
        {"class_weight": CLASS_WEIGHT},
        np.vectorize(CLASS_WEIGHT.get)(data()[1]).astype(np.float32),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_fit_is_the_step_bit_for_bit(name):
    of_compile, of_fit, weights = SAME[name]
    model = compiled(**of_compile)
    fitted(model, **of_fit)
    step = stepped(weights=weights)
    assert 0 < int(step.state.skipped_steps) < EPOCHS * COUNT // BATCH
    assert_equal(model, step)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_other_precisions(precision):
    model = compiled(precision, None)
    fitted(model)
    assert_equal(model, stepped(precision, None))


def test_metrics_are_of_the_outputs_before_each_update():
    model = compiled("float32", None, metrics=["accuracy"])
    history = fitted(model, epochs=1).history
    plain = make_model()
    plain.compile(keras.optimizers.Adam(1e-2), loss(), metrics=["accuracy"])
    theirs = fitted(plain, epochs=1).history
    assert history["accuracy"] == theirs["accuracy"]
    np.testing.assert_allclose(history["loss"], theirs["loss"], rtol=1e-5)
    assert set(history) - set(theirs) == {"loss_scale", "skipped_steps"}


def test_weights_that_a_callback_sets_are_used():
    class Zeros(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                self.model.set_weights([0 * w for w in self.model.get_weights()])

    model = compiled()
    fitted(model, epochs=1, callbacks=[Zeros()])
    step = mp_loop.TrainStep(
        make_model(), keras.optimizers.Adam(1e-2), loss(), "float16", RULE
    )
    inputs, labels = data()
    for batch in range(COUNT // BATCH):
        if batch == 2:
            step.model.set_weights([0 * w for w in step.model.get_weights()])
            step.reload()
        rows = slice(batch * BATCH, (batch + 1) * BATCH)
        step(inputs[rows], labels[rows])
    assert_equal(model, step)


@pytest.mark.usefixtures("compiled_by_keras")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_label_out_of_range_is_an_error(jit_compile):
    inputs, labels = data()
    model = compiled(jit_compile=jit_compile)
    with pytest.raises(tf.errors.InvalidArgumentError, match="from 0 to 3"):
        model.train_on_batch(inputs, labels + 1)
    assert int(model.mixed_precision.step.state.step) == 0


def test_callbacks_work(tmp_path):
    rates = []
    model = compiled(metrics=["accuracy"])
    inputs, labels = data()
    history = fitted(
        model,
        epochs=4,
        validation_data=(inputs, labels),
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 ** (epoch + 1)),
            keras.callbacks.EarlyStopping(
                "loss", mode="max", patience=2, restore_best_weights=True
            ),
            keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: rates.append(
                    float(model.optimizer.learning_rate)
                )
            ),
        ],
    ).history
    epochs = len(history["loss"])
    np.testing.assert_allclose(
        rates, [0.1 ** (i + 1) for i in range(epochs)], rtol=1e-6
    )
    assert "loss_scale" in (tmp_path / "log.csv").read_text().splitlines()[0]
    saved = keras.saving.load_model(tmp_path / "1.keras")
    assert type(saved) is keras.Sequential
    assert {weight.dtype for weight in saved.weights} == {"float32"}
    best = int(np.argmax(history["loss"])) + 1
    best_saved = keras.saving.load_model(tmp_path / f"{best}.keras")
    for a, b in zip(model.get_weights(), best_saved.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bad_batch_is_skipped_and_does_not_spoil_the_epochs_loss():
    inputs, labels = data()
    inputs[5] = np.inf
    model = compiled(rule=mp_loop.StaticLossScale(8.0))
    history = model.fit(inputs, labels, BATCH, 1, shuffle=False, verbose=0).history
    assert history["skipped_steps"] == [1]
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())
    before = model.get_weights()
    history = model.fit(np.full_like(inputs, np.nan), labels, BATCH, 1, verbose=0)
    assert np.isnan(history.history["loss"]).all()
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_compile_starts_anew_and_fit_goes_on():
    model = compiled()
    fitted(model, epochs=1)
    first = model.mixed_precision.step
    fitted(model, epochs=2)
    assert model.mixed_precision.step is first
    assert int(first.state.step) == 3 * COUNT // BATCH
    model.compile(keras.optimizers.SGD(0.0), loss())
    before = model.get_weights()[0]
    fitted(model, epochs=1)
    assert model.mixed_precision.step is not first
    np.testing.assert_array_equal(model.get_weights()[0], before)


def test_several_outputs():
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    hidden = keras.layers.Dense(8, activation="relu")(x)
    outputs = {
        "kind": keras.layers.Dense(4, name="kind")(hidden),
        "size": keras.layers.Dense(1, name="size")(hidden),
    }
    model = mp_loop.for_fit(keras.Model(x, outputs), "float16")
    model.compile(
        "adam",
        {"kind": loss(), "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.1},
        metrics={"kind": "accuracy"},
    )
    inputs = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    labels = {"kind": np.arange(32) % 4, "size": inputs[:, :1]}
    history = model.fit(inputs, labels, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert {"kind_accuracy", "kind_loss", "size_loss"} <= set(history)


@keras.saving.register_keras_serializable("fit_test")
class Same(keras.metrics.Metric):
    """How many numbers are equal as integers."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.count = self.add_weight(initializer="zeros", name="count")

    def update_state(self, labels, outputs, sample_weight=None):
        same = keras.ops.cast(labels, "int64") == keras.ops.cast(outputs, "int64")
        self.count.assign_add(keras.ops.sum(keras.ops.cast(same, "float32")))

    def result(self):
        return self.count


def test_a_batch_that_overflows_spoils_no_log_of_an_epoch():
    """Nor do integers that are passed on lose bits: 2^24 + 1 is no float32."""
    keras.utils.set_random_seed(0)
    x, user = keras.Input((8,), name="x"), keras.Input((1,), name="user", dtype="int64")
    hidden = keras.layers.Dense(4)(x)  # in float16; the last one is not
    outputs = {
        "size": keras.layers.Dense(4, name="size")(hidden),
        "user": keras.layers.Identity(dtype="int64")(user),
    }
    model = mp_loop.for_fit(
        keras.Model({"x": x, "user": user}, outputs), "float16", RULE
    )
    model.compile(
        keras.optimizers.SGD(0.0),
        {"size": "mse", "user": None},
        metrics={"size": ["mae", "mse"], "user": [Same(name="same")]},
    )
    inputs = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    users = np.arange(32)[:, None] + 2**24 + 1
    labels = {"size": np.zeros((32, 4), np.float32), "user": users}

    def logs(spoiled, rows=slice(None)):
        x = inputs.copy()
        x[spoiled] *= 1e9
        given = {"x": x[rows], "user": users[rows]}
        wanted = {name: value[rows] for name, value in labels.items()}
        history = model.fit(given, wanted, batch_size=8, shuffle=False, verbose=0)
        found = {name: values[0] for name, values in history.history.items()}
        return {k: v for k, v in found.items() if k not in fit._LOGS}

    clean = logs([], slice(8, None))
    assert clean["user_same"] == 24 and np.isfinite(list(clean.values())).all()
    assert logs(slice(0, 8)) == clean
    assert np.isnan(list(logs(slice(None)).values())).all()


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return {}


class OwnLoss(keras.Model):
    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        parts = [keras.ops.mean(abs(y_pred[name] - y)) for name in ("one", "two")]
        return parts[0] + 2.0 * parts[1] + 0.1 * keras.ops.mean(x)


class AddedLoss(OwnLoss):
    def compute_loss(self, x, y, y_pred, sample_weight=None):
        loss = super().compute_loss(x, y, y_pred)
        return loss + keras.Model.compute_loss(self, x, y, y_pred, sample_weight)


class Activity(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.mean(abs(inputs)))
        return inputs


def heads(kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(4, kernel_regularizer="l2", activation="relu")(
        keras.layers.Flatten()(inputs)
    )
    outputs = {x: Activity()(keras.layers.Dense(1)(hidden)) for x in ("one", "two")}
    return kind(inputs, outputs)


KINDS = {"own": OwnLoss, "on top of Keras'": AddedLoss, "added by layers": keras.Model}


@pytest.mark.parametrize("name", KINDS)
def test_losses_in_the_model(name):
    inputs, _ = data()
    labels = inputs.mean((1, 2))
    histories = []
    for mixed in (False, True):
        model = heads(KINDS[name])
        model = mp_loop.for_fit(model, "float32") if mixed else model
        model.compile(keras.optimizers.SGD(0.1))
        histories.append(
            model.fit(inputs, labels, BATCH, 2, shuffle=False, verbose=0).history
        )
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-5)


def test_no_loss_at_all_is_refused():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Dense(1)])
    step = mp_loop.TrainStep(model, "sgd", None)
    with pytest.raises(ValueError, match=r"`loss` \(None\) must be given"):
        step(data()[0], None)


class OwnLossClass(keras.losses.Loss):
    def call(self, labels, outputs):
        return keras.ops.mean(keras.ops.square(labels - outputs), -1)


class OwnMetric(keras.metrics.Metric):
    def __init__(self):
        super().__init__(name="total")
        self.total = self.add_weight(initializer="zeros", name="total")

    def update_state(self, labels, outputs, sample_weight=None):
        self.total.assign_add(keras.ops.sum(outputs))

    def result(self):
        return self.total


class OwnOptimizer(keras.optimizers.SGD):
    pass


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.01 / (1.0 + keras.ops.cast(step, "float32"))


def closure(power):
    def loss(labels, outputs):
        return keras.ops.mean(abs(labels - outputs) ** power, -1)

    return loss


OWN = {
    "classes": lambda: {
        "optimizer": OwnOptimizer(OwnSchedule()),
        "loss": OwnLossClass(),
        "metrics": [OwnMetric(), lambda labels, outputs: outputs],
    },
    "functions": lambda: {
        "optimizer": "sgd",
        "loss": closure(2.0),
        "weighted_metrics": [OwnMetric()],
    },
}


@pytest.mark.parametrize("name", OWN)
def test_own_objects_need_no_registration(name):
    inputs, _ = data()
    labels = inputs.mean((1, 2))
    histories = []
    for mixed in (False, True):
        model = make_model()
        model = mp_loop.for_fit(model, "float32") if mixed else model
        model.compile(**OWN[name]())
        histories.append(model.fit(inputs, labels, BATCH, 2, shuffle=False, verbose=0))
    theirs, ours = (history.history for history in histories)
    for key in theirs:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5)
    model = mp_loop.for_fit(make_model(), "float16")
    model.compile(**OWN[name]())
    model.fit(inputs, labels, BATCH, verbose=0)
    assert int(model.mixed_precision.step.state.applied_steps) == COUNT // BATCH


LAYERS = [keras.Input((2,)), keras.layers.Dense(1)]
REFUSED = {
    "a step of its own": (lambda: OwnStep(LAYERS), {}, "`train_step` of its own"),
    "accumulation": (make_model, {"accumulate_steps": 2}, r"`accumulate_steps` \(2\)"),
    "jit_compile": (make_model, {"jit_compile": True}, r"`jit_compile` \(True\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    maker, arguments, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        mp_loop.for_fit(maker(), **arguments)


def test_what_is_refused_when_training_starts():
    model = mp_loop.for_fit(make_model())
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), loss())
    with pytest.raises(ValueError, match="must not scale the loss.*inner_optimizer"):
        fitted(model)
    with policy("mixed_float16"):
        model = mp_loop.for_fit(make_model())
    model.compile("adam", loss())
    with pytest.raises(ValueError, match="policy mixed_float16: call"):
        fitted(model)
    model = mp_loop.for_fit(make_model(), "float8")
    model.compile("adam", loss())
    with pytest.raises(ValueError, match=r"`precision` \(float8\)"):
        fitted(model)


@contextlib.contextmanager
def policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def test_after_fit_in_float32_and_called_again():
    """The train function that Keras keeps is not used on."""
    inputs, labels = data()
    model = make_model()
    model.compile(keras.optimizers.Adam(1e-2), loss())
    fitted(model, epochs=1)
    mp_loop.for_fit(model, "float16", RULE)
    fitted(model, epochs=1)
    first = model.mixed_precision.step
    assert int(first.state.step) == COUNT // BATCH
    assert int(model.optimizer.iterations) == COUNT // BATCH + int(
        first.state.applied_steps
    )
    mp_loop.for_fit(model, "bfloat16")
    fitted(model, epochs=1)
    second = model.mixed_precision.step
    assert second is not first and second.working_weights[0].dtype == tf.bfloat16
    assert int(first.state.step) == int(second.state.step) == COUNT // BATCH


def test_a_sequential_model_without_an_input():
    inputs, labels = data()
    layers = [keras.layers.Flatten(), keras.layers.Dense(4)]
    with pytest.raises(ValueError, match="must be built.*`keras.Input"):
        mp_loop.TrainStep(keras.Sequential(layers), "adam", loss())
    model = mp_loop.for_fit(keras.Sequential(layers))
    model.compile("adam", loss())
    fitted(model, epochs=1)
    assert int(model.mixed_precision.step.state.applied_steps) == COUNT // BATCH


def test_train_on_batch_returns_what_keras_returns():
    inputs, labels = data()
    for metrics in ((), ["accuracy"]):
        model = compiled("float32", None, metrics=metrics)
        plain = make_model()
        plain.compile(keras.optimizers.Adam(1e-2), loss(), metrics=metrics)
        for rows in (slice(0, BATCH), slice(BATCH, 3 * BATCH)):
            ours, theirs = (
                m.train_on_batch(inputs[rows], labels[rows]) for m in (model, plain)
            )
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_train_on_batch_and_evaluate():
    inputs, labels = data()
    model = compiled()
    logs = model.train_on_batch(inputs[:BATCH], labels[:BATCH], return_dict=True)
    assert {"loss", "loss_scale", "skipped_steps"} <= set(logs)
    evaluated = model.evaluate(inputs, labels, BATCH, verbose=0)
    expected = mp_loop.EvalStep(model, loss(), "sparse_categorical_accuracy")
    batches = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(BATCH)
    regularizers = float(sum(model.losses))
    exact = expected(batches)["eval_loss"] + regularizers
    np.testing.assert_allclose(evaluated, exact, rtol=1e-5)
