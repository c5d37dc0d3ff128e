"""TensorBoard's files: there before the run ends."""

import pytest
import tensorflow as tf

from mp_loop.run import run_folder, tensorboard
from tests.support import run_folders


def test_tensorboard_holds_the_scalars_before_the_run_ends(tmp_path):
    run = run_folder.RunFolder.create(str(tmp_path), run_folders.FLAGS)
    run.log({"step": 20, "loss": 0.5, "skipped_steps": 2, "grad_norm": None})
    run.log_evaluation(20, {"eval_loss": 0.25, "eval_accuracy": 0.75})
    assert run_folders.tensorboard_scalars(tmp_path) == [
        ("train/loss", 20, 0.5),
        ("train/skipped_steps", 20, 2.0),
        ("eval/loss", 20, 0.25),
        ("eval/accuracy", 20, 0.75),
    ]
    run.close()


def test_a_disk_that_is_full_when_events_are_dropped_changes_nothing(
    tmp_path, monkeypatch
):
    run = run_folder.RunFolder.create(str(tmp_path), run_folders.FLAGS)
    for step in (20, 40):
        run.log({"step": step, "loss": 0.5})
    run.close()
    folder = tmp_path / "tensorboard"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self, record):
        raise tf.errors.ResourceExhaustedError(None, None, "x; No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.TFRecordWriter, "write", full)
        with pytest.raises(OSError, match="No space left on device"):
            tensorboard.drop_events_after(folder, 20)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    tensorboard.drop_events_after(folder, 20)
    assert run_folders.tensorboard_scalars(tmp_path) == [("train/loss", 20, 0.5)]
