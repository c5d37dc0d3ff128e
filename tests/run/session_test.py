"""A run and what it holds."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.models import predictors
from mp_loop.run import build, locking, records, scoring, session

WORDS = (
    "--model=tests.claims.victim:model",
    "--batch_size=192",
    "--steps=4",
    "--log_every=2",
    "--precision=bfloat16",
)


def built(folder, *words):
    words = ["train", *WORDS, *words, f"--output_dir={folder}"]
    return build.from_settings(app.parse(words)[0])


def finish(run):
    run.begin()
    return run.write_results(run.train(lambda line: None, lambda: 0))


def test_a_session_holds_the_folder_to_its_end(tmp_path):
    folder = tmp_path / "run"
    with session.Session(built(folder)) as run:
        assert run.done == 0
        summary = finish(run)
        with pytest.raises(errors.RecordError, match="another process"):
            locking.FolderLock(folder)
    locking.FolderLock(folder).release()
    assert records.read_summary(folder) == summary
    assert json.loads((folder / "classes.json").read_text())[7] == "Sneaker"
    images = run.experiment.source.test.inputs
    predictor = keras.models.load_model(folder / "predictor.keras")
    found = predictor.predict(images, verbose=0)["probability"].argmax(-1)
    right = np.mean(found == run.experiment.source.test.labels)
    assert right == pytest.approx(summary["eval_accuracy"], abs=1e-6)
    told, damaged = records.test_results_and_damage(folder)
    assert not damaged and told["classes"][7]["name"] == "Sneaker"
    assert told["top_1"] == pytest.approx(summary["eval_accuracy"], abs=1e-6)
    assert summary["steps"] == 4 and summary["model"] == WORDS[0].partition("=")[2]
    again = built(folder, "--steps=6", "--resume")
    with session.Session(again, locking.FolderLock(folder)) as run:
        assert run.done == 4
        summary = finish(run)
    assert summary["steps"] == 6
    told, _ = records.test_results_and_damage(folder)
    assert told["top_1"] == pytest.approx(summary["eval_accuracy"], abs=1e-6)
    assert [line["step"] for line in records.read_metrics(folder)] == [2, 4, 6]


def test_a_worker_without_files_trains_the_same_and_writes_nothing(tmp_path):
    folder = tmp_path / "run"
    with session.Session(built(folder), has_files=False) as run:
        lines = []
        run.begin()
        result = run.train(lines.append, lambda: 0)
        assert run.write_results(result)["steps"] == 4
    assert [line["step"] for line in lines if "loss" in line] == [2, 4]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_no_part_of_another_costs_a_warning(
    tmp_path, caplog, monkeypatch
):
    folder = tmp_path / "run"
    with session.Session(built(folder, "--steps=2")) as run:
        finish(run)
    assert (folder / "predictor.keras").exists()

    def refuse(source, model):
        raise errors.ModelError("it cannot")

    def lose_a_file(*_):
        raise tf.errors.NotFoundError(None, None, "it is gone")

    monkeypatch.setattr(predictors, "make", refuse)
    monkeypatch.setattr(scoring, "of", lose_a_file)
    again = built(folder, "--resume")
    with session.Session(again, locking.FolderLock(folder)) as run:
        assert finish(run)["steps"] == 4
    assert "No predictor.keras: it cannot" in caplog.messages
    # That of the earlier end has other weights.
    assert not (folder / "predictor.keras").exists()
    assert "No test_results.json: it is gone" in caplog.messages
    assert not (folder / "test_results.json").exists()
    assert (folder / "model.keras").exists() and (folder / "classes.json").exists()


def test_an_end_before_the_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "run"
    with session.Session(built(folder)) as run:
        finish(run)
    with pytest.raises(
        errors.UsageError, match=r"--steps \(3\) ends at step 3, before"
    ):
        session.Session(built(folder, "--steps=3", "--resume"))
