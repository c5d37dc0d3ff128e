"""A user's own data, by one flag: trained, stopped, resumed bit for bit."""

import json

import keras
import numpy as np
import pytest

from mp_loop import train
from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.data import sources
from mp_loop.run import records
from tests.support import encoders, photos


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


def csv_of_numbers(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 120)
    values = generator.normal(labels[:, np.newaxis], 0.1, (120, 2))
    rows = zip(*values.T, labels, strict=True)
    lines = [f"{a},{b + 1.7e9},{'xyz'[label]}" for a, b, label in rows]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,kind", *lines]))
    return f"--dataset=csv:{tmp_path / 'a.csv'}", "--label_column=kind"


def jsonl_of_texts(tmp_path):
    hub = pytest.importorskip("keras_hub")
    words = ["good", "bad", "film", "day"]
    preset = encoders.bert(
        hub, tmp_path / "bert", [*encoders.SPECIAL, *words], layers=1
    )
    rows = [
        {"text": f"{words[i % 2]} {words[2 + i // 2 % 2]}", "label": i % 2, "id": i}
        for i in range(40)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return (
        f"--dataset=jsonl:{tmp_path}",
        "--input_columns=text",
        f"--model=keras_hub:{preset}",
        "--sequence_length=6",
        "--dropout=0.1",
    )


WORDS = (
    "--model=mlp",
    "--batch_size=20",
    "--log_every=2",
    "--steps_per_call=2",
    "--deterministic",
    "--quiet",
)


def test_a_run_on_photos_is_resumed_bit_for_bit(tmp_path, caplog):
    words = (*WORDS, *folder(tmp_path))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*words, "--steps=6", f"--output_dir={whole}") == 0
    for more in (["--steps=2"], ["--steps=6", "--resume"]):
        assert run(*words, *more, f"--output_dir={parts}") == 0
    assert weights(whole) == weights(parts)
    found = records.read_summary(whole)
    assert found["steps"] == 6 and found["eval_accuracy"] > 0.15  # chance is 0.1
    bad = [x for x in caplog.messages if "left out: train/Bag/broken.jpg" in x]
    assert len(bad) == 3


@pytest.mark.parametrize("made", [npz, jsonl_of_texts])
def test_other_data_are_trained_on(tmp_path, made):
    words = (*WORDS, *made(tmp_path), "--steps=4", f"--output_dir={tmp_path / 'run'}")
    assert run(*words) == 0
    found = records.read_summary(tmp_path / "run")
    assert found["steps"] == 4 and np.isfinite(found["eval_loss"])
    assert (tmp_path / "run/predictor.keras").exists()


def test_a_table_is_trained_on_and_its_predictor_takes_rows_as_they_are(tmp_path):
    words = csv_of_numbers(tmp_path)
    folder = f"--output_dir={tmp_path / 'run'}"
    assert run(*WORDS, *words, "--epochs=8", folder) == 0
    predictor = keras.models.load_model(tmp_path / "run/predictor.keras")
    rows = np.array([[0, 1.7e9], [1, 1.7e9 + 1], [2, 1.7e9 + 2]])
    # Not by `predict` of an array, of which Keras makes float32.
    assert predictor(rows)["class"].numpy().tolist() == [b"x", b"y", b"z"]


def test_what_rows_have_no_use_for_is_refused(tmp_path):
    words = csv_of_numbers(tmp_path)
    for more, said in {
        "--image_size=8": r"^--image_size \(8\) is for images, not for --dataset=csv:",
        "--preprocessing=tf": r"^--preprocessing \(tf\) is for images",
        "--model=cnn": r"^--model \(cnn\) is for images; rows of numbers need mlp",
    }.items():
        with pytest.raises(errors.UsageError, match=said):
            run("--model=mlp", *words, more, f"--output_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
