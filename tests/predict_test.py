"""Predictions of a finished run, from the command line."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mp_loop import predict, train
from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.data import sources
from mp_loop.models import language, predictors
from mp_loop.rendering import whole_files
from mp_loop.run import prediction, records
from tests.support import data_sets, photos

# Keras 3.10 says so of every loaded model that has one input.
pytestmark = pytest.mark.filterwarnings("ignore:The structure of `inputs`")
QUICK = ("--model=mlp", "--steps=12", "--quiet")


def trained(folder, *words):
    config, _ = app.parse(["train", *words, f"--output_dir={folder}"])
    assert train.run(config, None) == 0
    return folder


def run(folder, *words):
    words = ["predict", f"--run={folder}", *words]
    return predict.run(*app.parse(words, predict.declare, of_experiment=False))


def refused(folder, *words):
    with pytest.raises(errors.UsageError) as error:
        run(folder, *words)
    assert "\n" not in str(error.value)
    return str(error.value)


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the embedded images, which no test changes."""
    return trained(tmp_path_factory.mktemp("run") / "run", *QUICK)


@pytest.fixture(scope="module")
def of_photos(tmp_path_factory):
    """A run on photos of two classes, some of them held out by their names."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    files = {
        f"{label}/{i}.png": generator.integers(low, low + 99, (9, 8 + i % 3, 3), "u1")
        for label, low in (("cat", 0), ("dog", 150))
        for i in range(30)
    }
    photos.write(folder / "photos", files)
    words = (f"--dataset=folder:{folder / 'photos'}", "--image_size=8")
    return trained(folder / "run", *words, *QUICK, "--batch_size=16")


def test_a_run_predicts_on_its_own_test_data(finished, tmp_path, capsys):
    output = tmp_path / "found.csv"
    assert run(finished, f"--output={output}") == 0
    accuracy = records.read_summary(finished)["eval_accuracy"]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"accuracy {accuracy:.4f} on 1000 examples with labels",
        f"Predictions: {output}",
    ]
    found = rows(output)
    source = sources.load("fashion_mnist_mini")
    assert [int(row["index"]) for row in found] == list(range(1000))
    wanted = [source.class_names[i] for i in source.test.labels]
    assert [row["label"] for row in found] == wanted
    predictor = keras.models.load_model(finished / "predictor.keras")
    again = predictor.predict(source.test.inputs, verbose=0)
    assert [row["class"] for row in found] == [x.decode() for x in again["class"]]
    np.testing.assert_allclose(
        [float(row["probability"]) for row in found],
        again["probability"].max(-1),
        atol=1e-6,
    )


def test_lines_of_json_have_the_same_values(finished, tmp_path):
    for name in ("a.csv", "a.jsonl"):
        words = ("--split=train[:30]", "--batch_size=16", f"--output={tmp_path / name}")
        assert run(finished, *words) == 0
    lines = [json.loads(x) for x in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[3]["index"] == 3 and isinstance(lines[3]["probability"], float)
    text = [{key: str(value) for key, value in line.items()} for line in lines]
    assert text == rows(tmp_path / "a.csv")


def test_photos_predict_on_those_held_out_and_on_a_flat_folder(
    of_photos, tmp_path, capsys
):
    assert run(of_photos) == 0
    accuracy = records.read_summary(of_photos)["eval_accuracy"]
    count = len(rows(of_photos / "predictions.csv"))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"accuracy {accuracy:.4f} on {count} examples with labels"
    assert said[-1] == f"Predictions: {of_photos / 'predictions.csv'}"
    flat = photos.write(tmp_path / "flat", {"a.png": 3, "b.png": photos.flat(9, 11)})
    output = tmp_path / "flat.csv"
    assert run(of_photos, f"--dataset=folder:{flat}", f"--output={output}") == 0
    assert [(x["file"], x["label"]) for x in rows(output)] == [
        ("a.png", ""),
        ("b.png", ""),
    ]
    assert capsys.readouterr().out == f"Predictions: {output}\n"


def test_a_damaged_image_is_named_and_left_out(of_photos, tmp_path, capsys):
    damaged = {"a.png": 3, "new/b.jpg": b"", "new/c.png": 7}
    words = (
        f"--dataset=folder:{photos.write(tmp_path / 'in', damaged)}",
        f"--output={tmp_path / 'out.csv'}",
        "--batch_size=1",
    )
    assert run(of_photos, *words) == 1
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert first.startswith("new/b.jpg: ") and second == "1 of 3 examples left out"
    assert said.out == f"Predictions: {tmp_path / 'out.csv'}\n"
    assert [row["file"] for row in rows(tmp_path / "out.csv")] == ["a.png", "new/c.png"]
    assert run(of_photos, *words, "--overwrite", "--skip_bad_examples") == 0


def test_nothing_is_written_where_nothing_can_be_read(of_photos, tmp_path):
    folder = photos.write(tmp_path / "in", {"a.png": b"", "b.png": b""})
    words = (f"--dataset=folder:{folder}", f"--output={tmp_path / 'out.csv'}")
    assert "None of the 2 examples can be used." in refused(of_photos, *words)
    assert [x.name for x in tmp_path.iterdir()] == ["in"]


def test_labels_of_other_classes_are_no_accuracy(of_photos, tmp_path, capsys):
    other = tmp_path / "other"
    files = {f"train/{x}/{i}.png": i for x in ("cat", "cow") for i in (1, 2)}
    photos.write(other, files)
    words = (f"--dataset=folder:{other}", f"--output={tmp_path / 'out.csv'}")
    assert run(of_photos, *words, "--split=train") == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.endswith(" on 2 examples with labels")
    assert second == "2 labels are no classes of the run"


REFUSED = {
    "no run": (["--run="], "--run must name the folder of a finished run."),
    "not a folder of a run": (["--run=/nowhere"], "(/nowhere) must be the folder"),
    "an unknown data set": (["--dataset=fashion_mist"], "Did you mean fashion_mnist"),
    "a folder that is not there": (["--dataset=folder:x"], "there is no folder 'x'"),
    "another shape": (
        ["--dataset=folder:{tmp}/in"], "a.png is (4, 4, 1); the model takes (28"
    ),
    "an unknown split": (["--split=tset"], "'train'], not 'tset'"),
    "text": (["--dataset=text:{tmp}"], "is text without labels"),
    "a suffix": (["--output=a.txt"], "--output (a.txt) must end in .csv or .jsonl."),
    "no such folder": (["--output=/no/a.csv"], "there is no folder '/no'."),
    "a file that is there": (["--output={tmp}/a.csv"], "already: name another"),
    "a folder": (["--output={tmp}/b.csv", "--overwrite"], "is there already"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(finished, tmp_path, name):
    words, said = REFUSED[name]
    photos.write(tmp_path, {"in/a.png": 1, "a.csv": b"kept"})
    (tmp_path / "b.csv").mkdir()
    before = sorted(tmp_path.rglob("*")) + sorted(finished.iterdir())
    words = [word.format(tmp=tmp_path) for word in words]
    assert said in refused(finished, *words)
    assert sorted(tmp_path.rglob("*")) + sorted(finished.iterdir()) == before
    assert (tmp_path / "a.csv").read_text() == "kept"


STATES = {
    "not finished": (["summary.json"], "is not finished. Finish it with: python -m"),
    "of an earlier version": (["predictor.keras", "classes.json"], "make it with: "),
    "cannot be combined": (["predictor.keras"], "cannot be part of another one"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_run_without_a_predictor_says_what_to_do(finished, tmp_path, name):
    missing, said = STATES[name]
    skipped = shutil.ignore_patterns("checkpoints", "tensorboard", *missing)
    shutil.copytree(finished, tmp_path / "run", ignore=skipped)
    assert said in refused(tmp_path / "run")


def test_a_predictor_that_is_damaged_is_named(finished, tmp_path):
    skipped = shutil.ignore_patterns("checkpoints", "tensorboard")
    shutil.copytree(finished, tmp_path / "run", ignore=skipped)
    (tmp_path / "run" / "predictor.keras").write_bytes(b"PK")
    assert "is not a .keras file" in refused(tmp_path / "run")


def test_a_signal_leaves_nothing_behind(finished, tmp_path, monkeypatch, capsys):
    before = prediction.of

    def interrupted(*arguments):
        for number, found in enumerate(before(*arguments)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield found

    monkeypatch.setattr(prediction, "of", interrupted)
    assert run(finished, f"--output={tmp_path / 'out.csv'}") == 143
    assert capsys.readouterr().err == "Interrupted: nothing was written.\n"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_of_a_file(finished, tmp_path, monkeypatch, capsys):
    def full(path, temporary):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_files, "replacing", full)
    output = tmp_path / "out.csv"
    assert run(finished, "--split=test[:5]", f"--output={output}") == 3
    said = f"--output ({output}) cannot be written: No space left on device.\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())


# Loads what was exported, in a process without mp_loop; for images without Keras too.
READER = """
import json, sys
sys.modules["mp_loop"] = None
import numpy as np, tensorflow as tf
if "text" in sys.argv:
    import tensorflow_text
else:
    sys.modules["keras"] = None
for folder, name in json.loads(sys.argv[1]):
    with np.load(name) as file:
        inputs, few = file["raw"], file["few"]
    loaded = tf.saved_model.load(f"{folder}/saved_model")
    served = loaded.serve(tf.constant(inputs))
    lite = tf.lite.Interpreter(f"{folder}/model.tflite")
    (taken,), (given,) = lite.get_input_details(), lite.get_output_details()
    lite.resize_tensor_input(taken["index"], few.shape)
    lite.allocate_tensors()
    lite.set_tensor(taken["index"], few)
    lite.invoke()
    np.savez(
        f"{name}.out.npz", lite=lite.get_tensor(given["index"]),
        **{key: value.numpy().astype("S9" if key == "class" else "f4")
           for key, value in served.items()},
    )
"""


def read_elsewhere(runs, *words):
    """What a process without mp_loop makes of inputs: [(folder, file of arrays)]."""
    done = subprocess.run(
        [sys.executable, "-c", READER, json.dumps([list(map(str, x)) for x in runs])]
        + [*words],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    return [np.load(f"{name}.out.npz") for _, name in runs]


def test_what_is_exported_is_the_predictor_in_a_process_without_it(
    finished, of_photos, tmp_path, capsys
):
    generator = np.random.default_rng(0)
    shapes = {finished: ((28, 28, 1),) * 2, of_photos: ((30, 21, 3), (8, 8, 3))}
    runs, wanted = [], []
    for folder, (shape, few_shape) in shapes.items():
        assert run(folder, "--export=saved_model,tflite", "--overwrite") == 0
        raw, few = (
            generator.integers(0, 256, (5, *x)).astype("f4") for x in (shape, few_shape)
        )
        np.savez(tmp_path / f"{len(runs)}.npz", raw=raw, few=few)
        runs.append((folder, tmp_path / f"{len(runs)}.npz"))
        predictor = keras.models.load_model(folder / "predictor.keras")
        wanted.append([predictor(raw), predictor(few)["probability"]])
    said = capsys.readouterr().out
    assert said.startswith(f"Exported: {finished / 'saved_model'}\nExported: ")
    assert not (finished / "predictions.csv").exists()
    for found, (served, lite) in zip(read_elsewhere(runs), wanted, strict=True):
        assert found["class"].tolist() == served["class"].numpy().tolist()
        for name, value in (("probability", served["probability"]), ("lite", lite)):
            np.testing.assert_allclose(found[name], value, atol=2e-6)


def test_an_export_replaces_nothing_unasked_and_is_whole_or_not_there(
    of_photos, tmp_path, monkeypatch
):
    skipped = shutil.ignore_patterns("checkpoints", "tensorboard", "*model*")
    folder = tmp_path / "run"
    shutil.copytree(of_photos, folder, ignore=skipped)
    assert "'onnx' is not" in refused(folder, "--export=saved_model,onnx")

    # The whole predictor, with the resize that TensorFlow Lite does not have.
    monkeypatch.setattr(predictors, "of_squares", lambda model: model)
    before = sorted(folder.iterdir())
    said = refused(folder, "--export=saved_model,tflite")
    assert said == (
        "--export (tflite): cannot become model.tflite: TensorFlow Lite does not have "
        "ScaleAndTranslate."
    )
    assert sorted(folder.iterdir()) == before
    (folder / "saved_model").mkdir()
    said = refused(folder, "--export=saved_model")
    assert said.endswith("is there already; --overwrite replaces it.")
    assert run(folder, "--export=saved_model", "--overwrite") == 0
    assert (folder / "saved_model" / "saved_model.pb").exists()


def test_a_table_is_predicted_on_by_the_names_of_its_columns(tmp_path, capsys):
    lines = [f"{i % 7},{1.7e9 + i % 2},{'ab'[i % 2]}" for i in range(80)]
    (tmp_path / "a.csv").write_text("\n".join(["x,time,label", *lines]))
    folder = tmp_path / "run"
    data = (f"--dataset=csv:{tmp_path / 'a.csv'}", "--input_columns=x,time")
    trained(folder, *data, *QUICK, "--batch_size=16")
    columns = (folder / "columns.json").read_text()
    assert json.loads(columns) == ["x", "time"]
    (folder / "columns.json").write_text("[1")
    assert "columns.json' cannot be read" in refused(folder)
    (folder / "columns.json").write_text(columns)
    # The columns are of a table; other data are refused for what they are.
    photos = f"--dataset=folder:{tmp_path}"
    assert "holds images, which the model does not read" in refused(folder, photos)
    assert run(folder) == 0
    accuracy = records.read_summary(folder)["eval_accuracy"]
    said = capsys.readouterr().out
    assert said.startswith(f"accuracy {accuracy:.4f} on ")
    (tmp_path / "new.csv").write_text(f"time,y,x\n{1.7e9},,3\n{1.7e9 + 1},,3\n,,\n")
    output = tmp_path / "found.csv"
    words = (f"--dataset=csv:{tmp_path / 'new.csv'}", f"--output={output}")
    assert run(folder, *words) == 1
    assert [(x["row"], x["class"]) for x in rows(output)] == [
        ("new.csv, line 2", "a"),
        ("new.csv, line 3", "b"),
    ]
    assert "new.csv, line 4: column 'x' holds no finite" in capsys.readouterr().err


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory):
    """A run on texts, whose preset is gone."""
    keras_hub = pytest.importorskip("keras_hub")
    folder, hub = tmp_path_factory.mktemp("texts"), keras_hub.models
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    tokens = hub.BertTokenizer(vocabulary=vocabulary)
    preset = str(folder / "bert")
    hub.BertBackbone(len(vocabulary), 1, 2, 16, 32).save_to_preset(preset)
    hub.BertTextClassifierPreprocessor(tokens).save_to_preset(preset)
    examples = [{"sentence": "abcdefgh"[i % 8], "label": i % 2} for i in range(40)]
    text = tfds.features.Text()
    data_sets.write(
        folder, text, data_sets.LABEL, examples, per_file=40, key="sentence"
    )
    words = (f"--model=keras_hub:{preset}", f"--data_dir={folder}", "--dataset=made")
    sizes = ("--sequence_length=6", "--steps=4", "--batch_size=8", "--quiet")
    trained(folder / "run", *words, *sizes)
    shutil.rmtree(preset)
    return folder / "run"


def test_texts_are_tokenized_by_what_the_run_folder_holds(of_texts, capsys):
    assert run(of_texts) == 0
    accuracy = records.read_summary(of_texts)["eval_accuracy"]
    said = capsys.readouterr().out.splitlines()[0]
    assert said == f"accuracy {accuracy:.4f} on 40 examples with labels"
    found = rows(of_texts / "predictions.csv")
    assert [row["label"] for row in found] == ["cat", "dog"] * 20
    said = refused(of_texts, "--dataset=fashion_mnist_mini", "--overwrite")
    assert "must have a Text" in said


def test_a_saved_model_of_texts_takes_texts(of_texts, tmp_path):
    assert run(of_texts, "--export=saved_model,tflite") == 0
    texts = np.array(["a b", "c", "a e f g h a b c"])
    tokens = language.saved_tokenizer(str(of_texts / "tokenizer"))(texts)
    predictor = keras.models.load_model(of_texts / "predictor.keras")
    wanted = predictor(tokens)["probability"]
    np.savez(tmp_path / "texts.npz", raw=texts, few=tokens)
    (found,) = read_elsewhere([(of_texts, tmp_path / "texts.npz")], "text")
    for name in ("probability", "lite"):
        np.testing.assert_allclose(found[name], wanted, atol=2e-6)
