"""The programs that users copy from, and what they lean on."""

import importlib.util
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.data import batching, sources
from mp_loop.models import catalog

ROOT = pathlib.Path(__file__).parents[1]
L = keras.layers


def program(name):
    """Imports examples/NAME.py."""
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fit_learns():
    assert program("fit").main(epochs=1) > 0.7  # chance is 0.1


def test_the_gan_trains():
    before, after = program("gan").main(steps=200)
    assert after < before / 2


def test_a_gradient_penalty_lowers_the_input_gradient():
    penalized = program("gradient_penalty")
    accuracy, norm = penalized.main(penalty=0.1, epochs=1)
    _, free = penalized.main(penalty=0.0, epochs=1)
    assert accuracy > 0.7
    assert norm < 0.7 * free


def test_averaged_weights_are_as_good():
    last, averaged = program("ema").main(epochs=2)
    assert min(last, averaged) > 0.75
    assert last != averaged


def test_the_pure_parts_are_the_step():
    rule = mp_loop.DynamicLossScale(2.0**22, growth_interval=20)
    model, skipped = program("pure_parts").main(1, rule)
    source = sources.load("fashion_mnist_mini")
    same = catalog.build("mlp", source.input_shape, source.num_classes, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = mp_loop.TrainStep(same, keras.optimizers.SGD(0.1), loss, "float16", rule)
    for images, labels in batching.training_batches(source, 128, 0, 0):
        step(images, labels)
    assert 3 <= skipped == int(step.state.skipped_steps)
    for ours, theirs in zip(model.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_language_model_learns_and_then_its_adapters():
    pytest.importorskip("keras_hub")
    model, losses = program("language_model").main(steps=8)
    assert losses[0] > losses[1] > losses[2]
    # The adapters of two projections in each of four blocks.
    assert len(model.trainable_weights) == len(model.optimizer.variables[2:]) / 2 == 16
    assert model.generate("import ", max_length=12).startswith("import ")


def test_own_data_can_be_loaded_by_name(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    source = program("own_data").main()
    assert capsys.readouterr().out.count("512 images of mean") == 4
    assert source.class_names == ("dark", "bright")
    assert source.input_shape == (16, 16, 1)
    assert (len(source.train), len(source.test)) == (2048, 256)
    means = source.train.inputs[:, 4:12, 4:12].mean((1, 2, 3))
    assert np.array_equal(means > 110, source.train.labels == 1)


def test_a_run_is_logged_in_mlflow(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    log = program("mlflow_callback").make({"output_dir": "runs/a", "seed": 3})
    log.set_params({"steps": 46, "epochs": 1})
    log.on_train_begin()
    log.on_train_batch_end(19, {"loss": 0.5})
    log.on_epoch_end(0, {"loss": 0.5, "val_accuracy": 0.75})
    log.on_train_end()
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.metrics == {"loss": 0.5, "val_accuracy": 0.75}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_accuracy")
    assert history[0].step == 46


def images(*layers):
    inputs = keras.Input((6, 6, 2))
    return keras.Sequential([inputs, *layers, L.Flatten(), L.Dense(3)])


def rows(*layers):
    return keras.Sequential([keras.Input((4, 8)), *layers, L.Flatten(), L.Dense(3)])


def attention():
    x = keras.Input((4, 8))
    y = L.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(x, L.Dense(3)(L.Flatten()(y)))


# Smooth activations: a second derivative that is zero would prove nothing.
TWICE = {
    "dense": lambda: rows(L.Dense(8, activation="tanh")),
    "einsum dense": lambda: rows(
        L.EinsumDense("abc,cd->abd", (4, 6), bias_axes="d", activation="tanh")
    ),
    "convolution": lambda: images(L.Conv2D(4, 3, activation="softplus")),
    "transposed": lambda: images(L.Conv2DTranspose(4, 3, activation="tanh")),
    "separable": lambda: images(L.SeparableConv2D(4, 3, activation="tanh")),
    "one dimension": lambda: rows(L.Conv1D(4, 3, activation="tanh")),
    "batch norm": lambda: images(
        L.Conv2D(4, 3), L.BatchNormalization(), L.Activation("tanh"), L.MaxPooling2D()
    ),
    "batch norm of rows": lambda: rows(
        L.Dense(8), L.BatchNormalization(), L.Activation("tanh")
    ),
    "layer norm": lambda: rows(
        L.Dense(8), L.LayerNormalization(), L.Activation("tanh")
    ),
    "softmax": lambda: rows(L.Dense(8, activation="softmax")),
    "attention": attention,
}


def penalty_gradients(model, inputs):
    """The gradients of a gradient penalty, in float32, as one vector."""
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function
    def run(inputs):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(inputs)
                outputs = tf.cast(model(inputs, training=True), tf.float32)
                weighted = tf.reduce_sum(outputs * [1.0, -2.0, 0.5])
            grads = inner.gradient(weighted, inputs)
            penalty = tf.reduce_sum(tf.square(grads))
        return outer.gradient(penalty, variables)

    grads = [
        tf.reshape(tf.cast(g, tf.float32), [-1]) for g in run(inputs) if g is not None
    ]
    return tf.concat(grads, 0).numpy()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float16") for name in TWICE),
        *((name, "bfloat16") for name in ("convolution", "batch norm", "attention")),
    ],
)
def test_the_twin_goes_backward_twice(name, dtype):
    keras.utils.set_random_seed(0)
    model = TWICE[name]()
    twin = mp_loop.half_precision_twin(model, dtype)
    inputs = tf.random.stateless_normal((5, *model.input_shape[1:]), [1, 2])
    exact, ours = penalty_gradients(model, inputs), penalty_gradients(twin, inputs)
    assert np.linalg.norm(exact) > 0.01
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    # Several roundings of 2^-11 or 2^-8 each; a maximum may move to a neighbour.
    assert error < 20 * {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]


def blocks():
    """The `after` blocks of MIGRATION.md, by section; some are commands alone."""
    text = (ROOT / "MIGRATION.md").read_text()
    found = re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:]
    sections = dict(zip(found[::2], found[1::2], strict=True))
    pattern = r"```python\n# after\n(.*?)```"
    codes = {
        name: re.findall(pattern, said, re.DOTALL) for name, said in sections.items()
    }
    return {name: found for name, found in codes.items() if found}


@pytest.mark.parametrize("section", blocks())
def test_the_migration_notes_run(section):
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 8)).astype(np.float32)
    y = generator.integers(0, 4, 64)
    (code,) = blocks()[section]
    made = []

    def make_model():
        layers = [keras.Input((8,)), L.Dense(8), L.Dense(4, activation="softmax")]
        made.append(keras.Sequential(layers))
        made.append(made[0].get_weights())
        return made[0]

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    exec(code, {"keras": keras, "mp_loop": mp_loop, "make_model": make_model,
                "dataset": dataset, "x": x, "y": y})  # fmt: skip
    model, before = made
    assert any((a != b).any() for a, b in zip(model.get_weights(), before, strict=True))


def test_the_blocks_of_the_page_on_programs_run():
    text = (ROOT / "docs" / "programs.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    keras.utils.set_random_seed(0)
    names = {}
    exec(code, names)
    assert names["done"] == 0 and (names["folder"] / "step-00000017").is_dir()
    assert names["logits"].shape == (32, 4) and names["logits"].dtype == tf.float32
    assert (
        "overflow" in names["origin"]["text"] or "infinite" in names["origin"]["text"]
    )
    errors = names["predicted"] - names["prices"]
    assert errors.std() < 0.2 * names["prices"].std()
    scale = names["network"].mixed_precision.step.loss_scale
    assert float(scale) >= 2.0**10


def test_the_tutorial_runs():
    script = re.search(
        r"```python\n# script.py\n(.*?)```",
        (ROOT / "docs" / "tutorial.md").read_text(),
        re.DOTALL,
    )[1]
    new_line = 'model = mp_loop.for_fit(model, "float16")\n'
    assert new_line in (ROOT / "docs" / "tutorial.md").read_text()
    script = script.replace("model.compile(", f"{new_line}model.compile(")
    script = script.replace("epochs=3", "epochs=1").replace("verbose=2", "verbose=0")
    keras.utils.set_random_seed(0)
    names = {"mp_loop": mp_loop}
    exec(script, names)
    logs = {key: values[-1] for key, values in names["model"].history.history.items()}
    assert logs["val_accuracy"] > 0.7 and logs["loss_scale"] == 2.0**15
    assert logs["skipped_steps"] == 0
