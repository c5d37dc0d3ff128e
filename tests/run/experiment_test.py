"""The parts of an experiment: its phases, frozen layers, and what is refused."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop import train
from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.run import build, records

pytestmark = pytest.mark.usefixtures("same_bits")


def config(*words):
    parsed, _ = app.parse(["train", *map(str, words)])
    return parsed


def lines(folder):
    return records.read_metrics(pathlib.Path(folder))


PHASES = (
    "--model=tests.claims.victim:model",
    "--batch_size=192",
    "--head_epochs=1",  # 31 steps
    "--head_learning_rate=0.002",
    "--learning_rate=0.004",
    "--schedule=linear",
    "--steps=41",
    "--log_every=1",
    "--freeze=^batch",
    "--keep_checkpoints=9",
)


def saved(folder, step, name):
    """The values in a checkpoint of the variables whose path holds `name`."""
    path = folder / f"checkpoints/step-{step:08d}"
    body = json.loads((path / "manifest.json").read_text().splitlines()[0])
    reader = tf.train.load_checkpoint(str(path / "state"))
    values = {}
    for key, tensor in body["tensors"].items():
        if name in tensor["variable"] and key.startswith(("master", "other")):
            values.setdefault(tensor["variable"], reader.get_tensor(key))
    return body["phase"], list(values.values())


@pytest.mark.parametrize(
    "words",
    [("--precision=float16",), ("--loop=keras", "--precision=bfloat16")],
    ids=["custom", "keras"],
)
def test_the_head_is_trained_first_and_then_what_is_not_frozen(words, tmp_path):
    folder = tmp_path / "run"
    assert train.run(config(*PHASES, *words, f"--output_dir={folder}"), None) == 0
    rates = [line["learning_rate"] for line in lines(folder)]
    wanted = [0.002] * 31 + [0.004 * (1 - i / 10) for i in range(10)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)
    counts = [(line["step"], line["applied_steps"]) for line in lines(folder)]
    assert counts == [(i, i) for i in range(1, 42)]
    built = build.from_settings(config(*PHASES))
    start = [v.numpy() for v in built.model.weights]
    trained = keras.models.load_model(folder / "model.keras")
    moved = [
        not np.array_equal(now, before)
        for now, before in zip(trained.weights, start, strict=True)
    ]
    # Kernel and bias, four of batch norm, kernel and bias of the head.
    assert moved == [True, True, False, False, False, False, True, True]
    phase, (kernel, *_) = saved(folder, 31, "conv2d")
    assert phase == 1
    np.testing.assert_array_equal(kernel, start[0])
    summary = records.read_summary(folder)
    assert summary["steps"] == summary["applied_steps"] == 41


def test_a_phase_goes_on_with_the_scale_and_the_seeds():
    words = [word for word in PHASES if not word.startswith("--steps")]
    first = build.from_settings(config(*words, "--initial_scale=1024"))
    first.step.run(iter(first.batches(0)), 3)
    first.step.state.loss_scale[0].assign(64.0)
    second = first.in_phase(1)
    assert second.in_phase(1) is second and second.model is first.model
    assert float(second.step.loss_scale) == 64.0
    before, after = first.step.state, second.step.state
    assert len(before.master_weights) == 2 and len(after.master_weights) == 4
    assert int(after.step) == int(after.applied_steps) == 3
    for one, other in zip(before.seeds, after.seeds, strict=True):
        np.testing.assert_array_equal(one, other)
    # The first draw moved the twin's seed away from the model's.
    assert any(
        not np.array_equal(seed, built)
        for seed, built in zip(
            after.seeds,
            build.from_settings(config(*words)).step.state.seeds,
            strict=True,
        )
    )


def test_frozen_layers_have_no_master_slot_or_gradient():
    words = ("--model=cnn", "--batch_size=32", "--freeze=conv2d", "--optimizer=adam")
    whole = build.from_settings(config("--model=cnn", "--batch_size=32")).step.state
    state = build.from_settings(config(*words)).step.state
    frozen = sum(
        v.shape.num_elements() for v in whole.master_weights if len(v.shape) == 4
    )
    masters = [v.shape.num_elements() for v in state.master_weights]
    assert sum(masters) == (
        sum(v.shape.num_elements() for v in whole.master_weights) - frozen
    )
    slots = sum(v.shape.num_elements() for v in state.slots) - 2  # count and rate
    assert slots == 2 * sum(masters)


def test_frozen_originals_leave_the_device_in_every_phase():
    """The second of two processors stands for an accelerator."""
    words = [word for word in PHASES if not word.startswith("--freeze")]
    with tf.device("CPU:1"):
        built = build.from_settings(config(*words, "--freeze=^conv"))
        second = built.in_phase(1)
        second.step.run(iter(second.batches(0)), 2)
        assert 0 <= second.evaluate()["eval_accuracy"] <= 1
    where = [v.value.device[-5:] for v in second.model.weights]
    assert where == ["CPU:0"] + 7 * ["CPU:1"]  # the first is the frozen kernel


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--head_epochs=1", "--steps=31"), r"--head_epochs \(1\) are 31 steps"),
        (("--freeze=absent",), r"--freeze \(absent\) matches no layer"),
        (("--preprocessing=torch",), r"--preprocessing \(torch\) is for 3 channels"),
        (("--weights=absent.keras",), r"--weights \(absent.keras\): there is no"),
    ],
)
def test_what_cannot_be_transferred_is_refused(words, message, tmp_path):
    folder = tmp_path / "run"
    base = (
        "--model=tests.claims.victim:model",
        "--batch_size=192",
        f"--output_dir={folder}",
    )
    with pytest.raises(errors.UsageError, match=message):
        train.run(config(*base, *words), None)
    assert not folder.exists()
