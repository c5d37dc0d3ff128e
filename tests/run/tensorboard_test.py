"""TensorBoard's files: there before the run ends."""

from mp_loop.run import run_folder
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
