"""A user's own data, by one flag: trained, stopped, resumed bit for bit."""

import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop import predict, train
from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.data import mask_files, sources
from mp_loop.run import records
from tests.support import encoders, photos, run_folders


def run(*words):
    parsed, _ = app.parse(["train", *map(str, words)])
    return train.run(parsed, None)


def same_after_a_kill(folder, step, *words):
    """Trains; and again from a checkpoint, which must give the same weights.

    Returns:
      The folder of the first run, which nothing interrupted.
    """
    whole, parts = folder / "whole", folder / "parts"
    words = (*words, f"--checkpoint_every={step}", "--keep_checkpoints=99")
    assert run(*words, f"--output_dir={whole}") == 0
    run_folders.killed_after(step, whole, parts)
    assert run(*words, "--resume", f"--output_dir={parts}") == 0
    assert weights(whole) == weights(parts)
    return whole


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
    words = (*WORDS, *folder(tmp_path), "--steps=6")
    whole = same_after_a_kill(tmp_path, 4, *words)
    found = records.read_summary(whole)
    assert found["steps"] == 6 and found["eval_accuracy"] > 0.15  # chance is 0.1
    bad = [x for x in caplog.messages if "left out: train/Bag/broken.jpg" in x]
    assert len(bad) == 2


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


@pytest.fixture(scope="module")
def of_prices(tmp_path_factory):
    """A table of prices, as large as raw numbers are, and of another target."""
    generator = np.random.default_rng(0)
    areas = generator.uniform(20, 200, 120)
    rows = [(area, 5e6 * area + 1e9, -area) for area in areas]
    lines = [",".join(map(repr, map(float, row))) for row in rows]
    path = tmp_path_factory.mktemp("prices") / "a.csv"
    path.write_text("\n".join(["area,price,other", *lines]))
    return "--task=regression", f"--dataset=csv:{path}", "--learning_rate=0.01"


def predicted(folder):
    words = ["predict", f"--run={folder}", f"--output={folder.parent / 'found.csv'}"]
    assert predict.run(*app.parse(words, predict.declare, of_experiment=False)) == 0
    with open(folder.parent / "found.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_regression_is_resumed_bit_for_bit_and_predicts_in_units(
    tmp_path, of_prices, capsys
):
    words = (*WORDS, *of_prices, "--label_column=price", "--input_columns=area")
    whole = same_after_a_kill(tmp_path, 40, *words, "--steps=60")
    found = records.read_summary(whole)
    assert found["skipped_steps"] == 0 and found["final_loss_scale"] == 2**15
    assert not (whole / "classes.json").exists()
    rows = predicted(whole)
    assert [*rows[0]] == ["row", "prediction", "label"]
    error = [abs(float(row["prediction"]) - float(row["label"])) for row in rows]
    # The deviation of the prices is 2.6e8; the loss of raw ones would be 1e18.
    assert np.mean(error) == pytest.approx(found["eval_mean_absolute_error"], rel=1e-3)
    assert np.mean(error) < 5e7
    assert "mean absolute error" in capsys.readouterr().out


def test_two_targets_are_learned_by_keras_loop(tmp_path, of_prices):
    folder = tmp_path / "run"
    words = (*WORDS, *of_prices, "--label_column=price,other", "--loop=keras")
    more = ("--metric=r2_score", "--steps=60", f"--output_dir={folder}")
    assert run(*words, *more) == 0
    assert records.read_summary(folder)["eval_r2_score"] > 0.9
    named = ["prediction_price", "prediction_other", "label_price", "label_other"]
    assert [*predicted(folder)[0]] == ["row", *named]


def test_a_model_that_ends_in_a_sigmoid_has_no_targets(tmp_path, of_prices):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "sigmoid")])
    model.save(tmp_path / "a.keras")
    words = ["--label_column=price", "--input_columns=area", "--output_dir=unused"]
    with pytest.raises(errors.UsageError, match="ends in softmax or sigmoid"):
        run(*of_prices, *words, f"--model={tmp_path / 'a.keras'}")


@pytest.fixture(scope="module")
def of_several(tmp_path_factory):
    """A table whose two classes depend on a column each."""
    values = np.random.default_rng(0).normal(size=(120, 2))
    path = tmp_path_factory.mktemp("several") / "a.csv"
    rows = [(*row, *(row > 0.3)) for row in values]
    path.write_text("\n".join(["a,b,up,right", *(",".join(map(str, r)) for r in rows)]))
    named = "--label_column=up,right"
    return "--task=multilabel", f"--dataset=csv:{path}", named, "--learning_rate=0.01"


def test_several_labels_are_resumed_bit_for_bit_and_predicted(
    tmp_path, of_several, capsys
):
    words = (*WORDS, *of_several, "--metric=binary_accuracy", "--label_smoothing=0.1")
    whole = same_after_a_kill(tmp_path, 20, *words, "--steps=30")
    found = records.read_summary(whole)
    assert "majority_accuracy" not in found and found["eval_accuracy"] > 0.75
    rows = predicted(whole)
    named = ["probability_up", "probability_right", "label_up", "label_right"]
    assert [*rows[0]] == ["row", *named]
    odds, flags = (np.array([[float(r[x]) for x in y] for r in rows]) for y in
                   (named[:2], named[2:]))  # fmt: skip
    right = np.mean((odds >= 0.5) == flags)
    assert right == pytest.approx(found["eval_accuracy"], abs=1e-6)
    assert f"binary accuracy {right:.4f} on {len(rows)}" in capsys.readouterr().out


def test_several_labels_are_learned_by_keras_loop_and_exported(tmp_path, of_several):
    folder = tmp_path / "run"
    more = ("--loop=keras", "--precision=bfloat16", f"--output_dir={folder}")
    assert run(*WORDS, *of_several, *more, "--steps=30") == 0
    assert records.read_summary(folder)["eval_auc"] > 0.9
    words = ["predict", f"--run={folder}", "--export=saved_model"]
    assert predict.run(*app.parse(words, predict.declare, of_experiment=False)) == 0
    served = tf.saved_model.load(folder / "saved_model")
    rows = np.array([[3.0, -3], [-3, 3], [3, 3], [-3, -3]])
    found = served.serve(tf.constant(rows))["class"].numpy().tolist()
    assert found == [[b"up", b""], [b"", b"right"], [b"up", b"right"], [b"", b""]]


def test_a_model_that_ends_in_a_softmax_has_one_class(tmp_path, of_several):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
    model.save(tmp_path / "a.keras")
    with pytest.raises(errors.UsageError, match="makes one class of all"):
        run(*of_several, f"--model={tmp_path / 'a.keras'}", "--output_dir=unused")


def test_a_segmentation_is_resumed_bit_for_bit_and_writes_masks(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    numbers = np.random.default_rng(0).choice([0, 9, 255], (24, 2, 2))
    numbers = numbers.astype(np.uint8).repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "a.npz", x_train=numbers // 2, y_train=numbers)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 1, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(2, 1),
        ]
    )
    model.save(tmp_path / "net.keras")
    words = (
        *WORDS[1:],
        "--task=segmentation",
        f"--dataset=npz:{tmp_path / 'a.npz'}",
        f"--model={tmp_path / 'net.keras'}",
        "--batch_size=6",
        "--ignore_label=9",
        "--validation_fraction=0.3",
        "--augment=flip_shift",
        "--learning_rate=0.05",
    )
    whole = same_after_a_kill(tmp_path, 8, *words, "--steps=12")
    found = records.read_summary(whole)
    assert found["eval_mean_iou"] > 0.9 > found["majority_mean_iou"] > 0
    rows = predicted(whole)
    assert [*rows[0]] == ["index", "mask", "accuracy"]
    said = f"mean IoU {found['eval_mean_iou']:.4f}, pixel accuracy"
    assert said in capsys.readouterr().out
    masks = [mask_files.decoded(str(tmp_path / row["mask"])) for row in rows]
    assert {*np.unique(masks)} == {0, 255}
    (tmp_path / "found.csv").unlink()
    with pytest.raises(errors.UsageError, match="found_masks', for its"):
        predicted(whole)
