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


@pytest.mark.parametrize("step", [0, 20])
def test_a_run_that_goes_on_has_each_event_once(tmp_path, step):
    """Its setup where it begins anew, and what a probe sees before the next step."""
    histogram = {"first": -3, "histogram": [1, 2], "name": "a"}
    seen = {
        "layers": [],
        "variables": [{"name": "a", "grads": histogram}],
        "step": step,
    }
    folder = str(tmp_path)
    run = run_folder.RunFolder.create(folder, run_folders.FLAGS)
    for _ in range(3):
        if not step or not run_folders.tensorboard_kinds(tmp_path):
            run.log_setup({"seed": 3}, tf.Graph())
        run.log({"step": 20, "loss": 0.5})
        run.log_numerics(seen)
        run.close()
        before = run_folders.tensorboard_kinds(tmp_path)
        run = run_folder.RunFolder.reopen(folder, run_folders.FLAGS, step)
    run.close()
    if step:  # the line of step 20 is kept, what a probe saw is not
        before = [kind for kind in before if kind[-1] != "grads/a"]
        assert len(before) - 3 == len(run_folders.tensorboard_kinds(tmp_path)) - 3
    else:
        assert not run_folders.tensorboard_kinds(tmp_path)
