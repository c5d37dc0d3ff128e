"""A run's flags and lines, what a kill leaves, and what TensorBoard reads of it."""

import shutil

# Written when a run has ended.
LAST = (
    *("model.keras", "predictor.keras", "summary.json"),
    *("test_results.json", "training.png", "report.html"),
)
FLAGS = "--model=mlp\n--seed=3\n"


def line(step, **values):
    return {
        "step": step,
        "applied_steps": step - 1,
        "skipped_steps": 1,
        "loss": 2.0 / step,
        "learning_rate": 0.125,
        "loss_scale": 32768.0,
        "grad_norm": 1.5,
        "examples_per_second": 1000.0,
        **values,
    }


def killed_after(step, whole, folder):
    """Copies a run as a kill would leave it just before its next checkpoint.

    Args:
      step: of the checkpoint that is the newest in the copy.
      whole: the folder of a finished run, which took more checkpoints.
      folder: of the copy.
    """
    shutil.copytree(whole, folder)
    for name in LAST:
        (folder / name).unlink(missing_ok=True)
    found = {int(path.name[5:]): path for path in folder.glob("checkpoints/step-*")}
    assert step in found and max(found) > step
    for number, path in found.items():
        if number > step:
            shutil.rmtree(path)


def tensorboard_events(folder):
    """Every event in the event files, in order."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2

    for path in map(str, sorted((folder / "tensorboard").iterdir())):
        for data in tf.data.TFRecordDataset(path):
            yield event_pb2.Event.FromString(data.numpy())


def tensorboard_scalars(folder):
    """(tag, step, value) of every metric in the event files, in order."""
    import tensorflow as tf

    return [
        (value.tag, event.step, float(tf.make_ndarray(value.tensor)))
        for event in tensorboard_events(folder)
        for value in event.summary.value
        if value.tag.startswith(("train/", "eval/"))  # else: hparams, graph
    ]


def tensorboard_kinds(folder):
    """Step and kind or tags of every event but the first of a file, in order."""
    return sorted(
        (event.step, event.WhichOneof("what"), *(v.tag for v in event.summary.value))
        for event in tensorboard_events(folder)
        if not event.file_version
    )
