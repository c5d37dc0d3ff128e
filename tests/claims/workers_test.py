"""The train command on many devices: two logical CPUs, and two real processes.

The quick test loses a worker in the second phase of a run; the slow ones try others.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from mp_loop import train
from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.run import records

ROOT = pathlib.Path(__file__).parents[2]
# Batch norm and dropout in float16, overflows, several steps in a call.
FLAGS = (
    "--model=tests.claims.workers_test:small",
    "--batch_size=32",
    "--steps=24",
    "--steps_per_call=2",
    "--log_every=2",
    "--eval_every=12",
    "--checkpoint_every=6",
    "--initial_scale=1e7",
    "--growth_interval=4",
    "--deterministic",
    "--augment=flip_shift",
)


def small(input_shape, num_classes):
    """What the runs here train."""
    layers = [
        keras.layers.Conv2D(4, 3, strides=2, use_bias=False, name="conv"),
        keras.layers.BatchNormalization(momentum=0.9, name="norm"),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2, seed=1),
        keras.layers.Dense(32, activation="relu", name="hidden"),
        keras.layers.Dense(num_classes, name="classes"),
    ]
    return keras.Sequential([keras.Input(input_shape), *layers], name="small")


def config(*words):
    parsed, _ = app.parse(["train", *map(str, words)])
    return parsed


def run(folder, *words):
    return train.run(config(*words, f"--output_dir={folder}"), None)


def lines(folder):
    """metrics.jsonl without what time decides."""
    found = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in found]  # NaN is a word here, equal to itself
    return [
        {
            k: v
            for k, v in line.items()
            if k not in ("examples_per_second", "input_wait")
        }
        for line in found
    ]


def weights(folder):
    model = keras.saving.load_model(pathlib.Path(folder) / "model.keras")
    return [np.asarray(w).tobytes() for w in model.get_weights()]


def start(folder, number, port, *words):
    """Starts one of two workers; only the first is given a folder it can write."""
    addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
    task = {"type": "worker", "index": number}
    text = json.dumps({"cluster": {"worker": addresses}, "task": task})
    folder = f"/proc/no_folder_{number}" if number else folder
    return subprocess.Popen(
        [sys.executable, "-m", "mp_loop.train", "--strategy=multi_worker"]
        + [*words, f"--output_dir={folder}", "--worker_timeout=120"],
        env={**os.environ, "TF_CONFIG": text},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def start_both(folder, *words):
    with socket.create_server(("", 0)) as one:
        port = one.getsockname()[1]
    return [start(folder, number, port, *words) for number in (0, 1)]


def finish(workers, seconds=180):
    """Waits for both; returns exit codes and what they said."""
    said = [worker.communicate(timeout=seconds)[1] for worker in workers]
    return [worker.returncode for worker in workers], said


def wait_for_lines(folder, count, workers):
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= count):
        assert workers[0].poll() is None, workers[0].stderr.read()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A whole run on two logical CPUs of this process."""
    folder = tmp_path_factory.mktemp("mirrored") / "run"
    assert run(folder, *FLAGS, "--strategy=mirrored") == 0
    return folder


KILLED = {
    "worker": (1, signal.SIGKILL),
    "chief": (0, signal.SIGKILL),
    "worker, frozen": (1, signal.SIGSTOP),
    "chief, frozen": (0, signal.SIGSTOP),
}


def lose_one_and_resume(folder, mirrored, name, flags, count):
    """Stops a worker when there are `count` lines; then both train to the end."""
    victim, number = KILLED[name]
    workers = start_both(folder, *flags)
    wait_for_lines(folder, count, workers)
    workers[victim].send_signal(number)
    survivor = workers[1 - victim]
    said = survivor.communicate(timeout=90)[1]
    assert survivor.returncode == 75, said
    told = re.search(r"^Worker lost: another worker stopped: .*--resume", said, re.M)
    assert told and "Traceback" not in said, said
    workers[victim].kill()
    workers[victim].communicate()
    codes, said = finish(start_both(folder, *flags, "--resume"))
    assert codes == [0, 0], said
    # Two replicas are two replicas, wherever they are.
    assert lines(folder) == lines(mirrored)
    assert weights(folder) == weights(mirrored)
    evaluations = [records.read_evaluations(f) for f in (folder, mirrored)]
    assert evaluations[0] == evaluations[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_lost_worker_stops_the_other_and_all_resume_exactly(tmp_path, mirrored, name):
    lose_one_and_resume(tmp_path / "run", mirrored, name, FLAGS, 4)


@pytest.mark.parametrize("jit", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_all_resume_in_the_phase_of_the_chief(tmp_path, jit):
    # The head for 15 steps.
    flags = (*FLAGS, "--head_epochs=1", "--batch_size=384", f"--jit_compile={jit}")
    mirrored = tmp_path / "mirrored"
    assert run(mirrored, *flags, "--strategy=mirrored") == 0
    # Ten lines: at step 18.
    lose_one_and_resume(tmp_path / "run", mirrored, "worker", flags, 10)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["chief", "worker"])
def test_a_signal_to_one_worker_stops_all_with_a_checkpoint(tmp_path, mirrored, number):
    folder = tmp_path / "run"
    workers = start_both(folder, *FLAGS)
    wait_for_lines(folder, 4, workers)
    workers[number].send_signal(signal.SIGTERM)
    codes, said = finish(workers)
    assert codes == [143, 143], said
    steps = [re.search(r"Interrupted at step (\d+)", text)[1] for text in said]
    assert steps[0] == steps[1]
    codes, said = finish(start_both(folder, *FLAGS, "--resume"))
    assert codes == [0, 0], said
    assert lines(folder) == lines(mirrored)
    assert weights(folder) == weights(mirrored)


@pytest.mark.slow
def test_workers_with_other_flags_are_refused(tmp_path):
    with socket.create_server(("", 0)) as one:
        port = one.getsockname()[1]
    workers = [
        start(tmp_path / "run", number, port, *FLAGS, f"--seed={number}")
        for number in (0, 1)
    ]
    codes, said = finish(workers)
    line = "worker 1 has other flags than the chief: --seed=1 instead of --seed=0.\n"
    assert (codes, said) == ([2, 2], [line, line])
    assert not (tmp_path / "run").exists()


def test_two_devices_train_like_one_and_hand_over_to_it(tmp_path):
    """On two to step 12, on one to 24: the scale and the skips of one throughout."""
    flags = (*FLAGS, "--model=mlp")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, *flags) == 0
    assert run(parts, *flags, "--steps=12", "--strategy=mirrored") == 0
    told, _ = records.test_results_and_damage(parts)
    accuracy = records.read_summary(parts)["eval_accuracy"]
    assert told["top_1"] == pytest.approx(accuracy, abs=1e-6)
    assert run(parts, *flags, "--resume", "--strategy=none") == 0
    exact = ("step", "applied_steps", "skipped_steps", "loss_scale")
    found = [[[line[k] for k in exact] for line in lines(f)] for f in (whole, parts)]
    assert found[0] == found[1] and found[0][-1][2] >= 3
    # Adam magnifies what float16 rounds in small gradients.
    for mine, other in zip(lines(parts), lines(whole), strict=True):
        np.testing.assert_allclose(mine["loss"], other["loss"], rtol=2.0**-6)


REFUSED = {
    "uneven": (
        ["--strategy=mirrored", "--batch_size=9"],
        r"--batch_size \(9\) must be a multiple of 2: 2 replicas",
    ),
    "uneven micro-batches": (
        ["--strategy=mirrored", "--batch_size=12", "--accumulate_steps=4"],
        r"--batch_size \(12\) must be a multiple of 8: 2 replicas with "
        "--accumulate_steps=4",
    ),
    "no cluster": (
        ["--strategy=multi_worker"],
        r"--strategy \(multi_worker\) needs the environment variable TF_CONFIG",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    words, said = REFUSED[name]
    with pytest.raises(errors.UsageError, match=said):
        run(tmp_path / "run", "--model=mlp", *words)
    assert list(tmp_path.iterdir()) == []
