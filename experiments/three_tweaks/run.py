"""Takes each of the three tweaks away, on real data, and shows what is lost.

    python experiments/three_tweaks/run.py --output_dir=runs/three_tweaks

Every setting trains a float32 model three times from the same start: in float32,
in float16 with all three tweaks, and in float16 without one of them. A setting
has one knob that makes the lack hurt more or less; every value of the knob is
tried with one seed, the chosen value with all seeds.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags

import mp_loop
from mp_loop.data import batching, sources

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

flags.DEFINE_string("output_dir", "runs/three_tweaks", "Where figures and numbers go.")
flags.DEFINE_list("settings", ["masters", "scaling", "reductions"], "Which to run.")
flags.DEFINE_integer("seeds", 3, "Seeds at the chosen value.", lower_bound=1)
flags.DEFINE_float("length", 1.0, "Steps, times this.", lower_bound=0.0)

ARMS = ("float32", "float16", "ablated")
EVALUATIONS = 20  # in a run


@dataclasses.dataclass(frozen=True)
class Setting:
    """One tweak, and where its lack shows.

    Attributes:
      title: what the ablated arm lacks.
      knob: what is varied.
      values: its values, the mildest first.
      chosen: the value that is run with every seed.
      steps: length of a run.
      make: of (knob, whether ablated) returns model, optimizer, batch size.
      step: arguments of `TrainStep` for the ablated arm.
      round_masters: whether the ablated arm keeps its weights in float16 only.
      reconstructs: whether the images are the labels.
    """

    title: str
    knob: str
    values: tuple[float, ...]
    chosen: float
    steps: int
    make: Callable[[float, bool], tuple[keras.Model, Any, int]]
    step: dict[str, Any] = dataclasses.field(default_factory=dict)
    round_masters: bool = False
    reconstructs: bool = False

    @property
    def metric(self) -> str:
        """What is measured on the test examples."""
        return "mean squared error" if self.reconstructs else "accuracy"


def mlp(rate: float, ablated: bool) -> tuple[keras.Model, Any, int]:
    """A dense classifier; Adam, whose updates are as large as its rate."""
    del ablated
    return dense([128, 128], "relu", 10), keras.optimizers.Adam(rate), 32


def autoencoder(weight: float, ablated: bool) -> tuple[keras.Model, Any, int]:
    """Pixels in, pixels out, through sigmoids, which divide gradients by four.

    The loss is a mean over all pixels of the batch, times a weight, as a term among
    others would be. Adam with next to no epsilon undoes the weight in float32.
    """
    del weight, ablated
    model = dense([128, 32, 128], "sigmoid", 28 * 28)
    return model, keras.optimizers.Adam(1e-3, epsilon=1e-12), 256


def dense(widths: list[int], activation: str, outputs: int) -> keras.Model:
    """Hidden layers of these widths on the pixels, and linear outputs."""
    hidden = [keras.layers.Dense(width, activation=activation) for width in widths]
    last = keras.layers.Dense(outputs)
    return keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(), *hidden, last]
    )


class BatchStandardize(keras.layers.Layer):
    """Standardizes each channel by the batch's own moments, summed in `sum_dtype`."""

    def __init__(self, sum_dtype: str = "float32", **kwargs: Any):
        super().__init__(**kwargs)
        self.sum_dtype = sum_dtype

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = tf.cast(inputs, self.sum_dtype)
        mean = tf.reduce_mean(x, (0, 1, 2))
        variance = tf.reduce_mean(tf.square(x - mean), (0, 1, 2))
        return tf.cast((x - mean) * tf.math.rsqrt(variance + 1e-3), inputs.dtype)


def normalized(batch: float, ablated: bool) -> tuple[keras.Model, Any, int]:
    """A convolutional classifier whose normalization sums over whole batches."""
    layers = keras.layers
    sum_dtype = "float16" if ablated else "float32"
    x = inputs = keras.Input((28, 28, 1))
    for width, stride in ((8, 1), (16, 2), (32, 2)):
        x = layers.Conv2D(width, 3, stride, "same")(x)
        x = BatchStandardize(sum_dtype)(x)
        x = layers.ReLU()(x)
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs), keras.optimizers.Adam(2e-3), int(batch)


SETTINGS = {
    "masters": Setting(
        title="no float32 masters",
        knob="learning rate",
        values=(1e-3, 1e-4, 3e-5, 1e-5),
        chosen=1e-5,
        steps=3000,
        make=mlp,
        round_masters=True,
    ),
    "scaling": Setting(
        title="no loss scaling",
        knob="loss weight",
        values=(1.0, 0.1, 0.01, 0.001),
        chosen=0.001,
        steps=1500,
        make=autoencoder,
        reconstructs=True,
        step={"loss_scale": mp_loop.NoLossScale()},
    ),
    "reductions": Setting(
        title="no float32 reductions",
        knob="batch size",
        values=(16, 64, 256),
        chosen=256,
        steps=300,
        make=normalized,
    ),
}


def main(argv: list[str]) -> None:
    """Runs the settings, and writes results.json, table.md and the figures."""
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tf.config.experimental.enable_op_determinism()
    source = sources.load("fashion_mnist_mini")
    tests = list(batching.evaluation_batches(source, 500))
    runs = []
    for name in flags.FLAGS.settings:
        setting = SETTINGS[name]
        for value in setting.values:
            seeds = flags.FLAGS.seeds if value == setting.chosen else 1
            for seed in range(seeds):
                for arm in ARMS:
                    run = train(setting, arm, value, seed, source, tests)
                    runs.append({"setting": name, **run})
                    print(
                        f"{name} {setting.knob} {value:g} seed {seed} {arm}: "
                        f"{setting.metric} {run['curve'][-1][1]:.4f}, "
                        f"{run['skipped']} skipped, {run['seconds']:.0f} s",
                        flush=True,
                    )
    (folder / "results.json").write_text(json.dumps(runs, indent=1) + "\n")
    (folder / "table.md").write_text(table(runs))
    draw_curves(runs, folder / "curves.png")
    if "scaling" in flags.FLAGS.settings:
        found = gradient_exponents(source)
        draw_gradients(found, folder / "gradients.png")
    print(table(runs))


def train(
    setting: Setting,
    arm: str,
    value: float,
    seed: int,
    source: sources.Source,
    tests: list[Any],
) -> dict[str, Any]:
    """Trains one arm; `curve` holds (step, metric on the batches of tests)."""
    begun = time.monotonic()
    model, step, batch = prepare(setting, arm, value, seed)
    # The same weights, always evaluated in float32 and with float32 sums.
    judge = model
    if arm == "ablated":
        judge = setting.make(value, False)[0]
    steps = max(int(setting.steps * flags.FLAGS.length), 2)
    curve = []
    for number, (inputs, labels) in enumerate(batches(source, batch, seed), 1):
        step(*example(setting, inputs, labels))
        if arm == "ablated" and setting.round_masters:
            round_to_float16(step.master_weights)
        if number % max(steps // EVALUATIONS, 1) == 0 or number == steps:
            judge.set_weights(model.get_weights())
            curve.append((number, evaluate(judge, setting, tests)))
        if number == steps:
            break
    return {
        "arm": arm,
        "value": value,
        "seed": seed,
        "curve": curve,
        "skipped": int(step.state.skipped_steps),
        "loss_scale": float(step.loss_scale),
        "seconds": time.monotonic() - begun,
    }


def prepare(
    setting: Setting, arm: str, value: float, seed: int
) -> tuple[keras.Model, mp_loop.TrainStep, int]:
    """Returns the model, its step and the batch size."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model, optimizer, batch = setting.make(value, arm == "ablated")
    loss = loss_of(setting, value)
    precision = "float32" if arm == "float32" else "float16"
    arguments = setting.step if arm == "ablated" else {}
    return (
        model,
        mp_loop.TrainStep(model, optimizer, loss, precision, **arguments),
        batch,
    )


def loss_of(setting: Setting, value: float) -> Callable[..., tf.Tensor]:
    """Returns the loss, a mean over all that is predicted."""
    if not setting.reconstructs:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    mean = keras.losses.MeanSquaredError()
    return lambda labels, outputs: value * mean(labels, outputs)


def example(setting: Setting, inputs: tf.Tensor, labels: tf.Tensor) -> Any:
    """Returns inputs and what is to be predicted."""
    if setting.reconstructs:
        labels = tf.reshape(inputs, (len(inputs), -1))
    return inputs, labels


def batches(source: sources.Source, batch: int, seed: int) -> Iterator[Any]:
    """Yields training batches without end, epoch after epoch."""
    epoch = 0
    while True:
        yield from batching.training_batches(source, batch, seed, epoch)
        epoch += 1


@tf.function
def round_to_float16(masters: list[tf.Variable]) -> None:
    """Leaves in the masters what a float16 variable would hold."""
    for master in masters:
        master.assign(tf.cast(tf.cast(master, tf.float16), tf.float32))


def evaluate(model: keras.Model, setting: Setting, tests: list[Any]) -> float:
    """Returns the metric over all test examples."""
    found = []
    for batch in tests:
        inputs, labels = example(setting, *batch)
        outputs = model(inputs, training=False)
        if setting.reconstructs:
            found.append(np.mean(np.square(outputs - labels)))
        else:
            found.append(np.mean(np.argmax(outputs, -1) == labels.numpy()))
    return float(np.mean(found))


def gradient_exponents(source: sources.Source) -> dict[str, Any]:
    """Counts exponents of activation gradients of the autoencoder, trained.

    Returns:
      `counts`: of gradients with floor(log2(abs)) = exponent, in float32;
      `zeros`: exact zeros; `scale`: the loss scale that training ended with.
    """
    setting = SETTINGS["scaling"]
    model, step, batch = prepare(setting, "float16", setting.chosen, 0)
    steps = max(int(setting.steps * flags.FLAGS.length), 2)
    for number, (inputs, labels) in enumerate(batches(source, batch, 0), 1):
        step(*example(setting, inputs, labels))
        if number == steps:
            break
    every = keras.Model(model.inputs, [layer.output for layer in model.layers])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        activations = every(inputs)
        labels = example(setting, inputs, labels)[1]
        loss = loss_of(setting, setting.chosen)(labels, activations[-1])
    gradients = tape.gradient(loss, activations)
    values = np.abs(np.concatenate([np.ravel(g) for g in gradients]))
    exponents = np.floor(np.log2(values[values > 0])).astype(int)
    return {
        "counts": collections.Counter(exponents.tolist()),
        "zeros": int(np.sum(values == 0)),
        "scale": float(step.loss_scale),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of the last metric, mean and range over the seeds."""
    lines = [
        "| setting | knob | float32 | float16 | ablated | skipped, ablated |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, setting in SETTINGS.items():
        for value in setting.values:
            cells, skipped = [], []
            for arm in ARMS:
                chosen = [
                    run
                    for run in runs
                    if (run["setting"], run["value"], run["arm"]) == (name, value, arm)
                ]
                if not chosen:
                    break
                ends = [run["curve"][-1][1] for run in chosen]
                cell = f"{np.mean(ends):.4f}"
                if len(ends) > 1:
                    cell += f" ({min(ends):.4f} to {max(ends):.4f})"
                cells.append(cell)
                skipped = [str(run["skipped"]) for run in chosen]
            if cells:
                knob = f"{setting.knob} {value:g}"
                cells = [
                    f"{setting.title}: {setting.metric}",
                    knob,
                    *cells,
                    ", ".join(skipped),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


COLORS = {"float32": "#bbbbbb", "float16": "#1f77b4", "ablated": "#d62728"}


def draw_curves(runs: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws every run at a chosen value, one panel for each setting."""
    names = list(dict.fromkeys(run["setting"] for run in runs))
    figure, panels = plt.subplots(
        1, len(names), figsize=(4.6 * len(names), 3.6), squeeze=False
    )
    for panel, name in zip(panels[0], names, strict=True):
        setting = SETTINGS[name]
        labels = {
            "float32": "float32",
            "float16": "float16, all three tweaks",
            "ablated": f"float16, {setting.title}",
        }
        for run in runs:
            if run["setting"] != name or run["value"] != setting.chosen:
                continue
            steps, values = zip(*run["curve"], strict=True)
            label = labels[run["arm"]] if run["seed"] == 0 else None
            width = 4 if run["arm"] == "float32" else 1.2  # it lies below float16's
            panel.plot(steps, values, color=COLORS[run["arm"]], label=label, lw=width)
        panel.set_title(f"{setting.title}\n{setting.knob} {setting.chosen:g}")
        panel.set_xlabel("step")
        panel.set_ylabel(f"test {setting.metric}")
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_gradients(found: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the histogram of gradient exponents, without and with the loss scale."""
    total = sum(found["counts"].values())
    shift = int(np.log2(found["scale"]))
    figure, panels = plt.subplots(2, 1, figsize=(7, 5), sharex=True)
    for panel, by in zip(panels, (0, shift), strict=True):
        exponents = np.array(sorted(found["counts"]))
        shares = np.array([found["counts"][e] for e in exponents]) / total
        lost = shares[exponents + by < -24].sum()
        colors = np.where(exponents + by < -24, COLORS["ablated"], COLORS["float16"])
        panel.bar(exponents + by, shares, color=colors, width=0.9)
        panel.axvline(-24.5, color="black", lw=1)
        panel.axvline(15.5, color="black", lw=1, ls="--")
        scale = "no loss scaling" if not by else f"loss scale 2^{by}"
        panel.set_title(f"{scale}: {lost:.1%} of nonzero gradients below 2^-24")
        panel.set_ylabel("share")
        print(f"{scale}: {lost:.4f} of {total} nonzero gradients below 2^-24")
    panels[1].set_xlabel(
        "exponent of activation gradients; lines: float16's smallest and largest"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    app.run(main)
