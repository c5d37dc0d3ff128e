"""A user's own data, by one flag: trained, stopped, resumed bit for bit."""

import keras
import numpy as np
import pytest

from mp_loop import train
from mp_loop.cli import app
from mp_loop.data import sources
from mp_loop.run import records
from tests.support import photos


def run(*words):
    parsed, _ = app.parse(["train", *map(str, words)])
    return train.run(parsed, None)


def weights(folder):
    model = keras.saving.load_model(folder / "model.keras")
    return [np.asarray(weight).tobytes() for weight in model.get_weights()]


def folder(tmp_path):
    mini = sources.load("fashion_mnist_mini")
    photos.of_source(tmp_path / "photos", mini, train=8, test=4)
    bad = {"train/Bag/broken.jpg": b"no image"}
    photos.write(tmp_path / "photos", bad)
    return (
        f"--dataset=folder:{tmp_path / 'photos'}",
        "--skip_bad_examples",
        "--image_size=20",
        "--augment=flip_crop",
        "--precision=bfloat16",
    )


def npz(tmp_path):
    mini = sources.load("fashion_mnist_mini")
    arrays = {"x_train": mini.train.inputs[:90], "y_train": mini.train.labels[:90]}
    np.savez(tmp_path / "a.npz", **arrays, class_names=np.array(mini.class_names))
    fraction = "--validation_fraction=0.2"
    return f"--dataset=npz:{tmp_path / 'a.npz'}", fraction, "--augment=flip_shift"


@pytest.mark.parametrize("made", [folder, npz])
def test_a_run_on_own_data_is_resumed_bit_for_bit(tmp_path, caplog, made):
    words = (
        *made(tmp_path),
        "--model=mlp",
        "--batch_size=20",
        "--log_every=2",
        "--steps_per_call=2",
        "--deterministic",
        "--quiet",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*words, "--steps=6", f"--output_dir={whole}") == 0
    for more in (["--steps=2"], ["--steps=6", "--resume"]):
        assert run(*words, *more, f"--output_dir={parts}") == 0
    assert weights(whole) == weights(parts)
    found = records.read_summary(whole)
    assert found["steps"] == 6 and found["eval_accuracy"] > 0.15  # chance is 0.1
    if made is folder:
        bad = [x for x in caplog.messages if "left out: train/Bag/broken.jpg" in x]
        assert len(bad) == 3
