"""A run's flags and lines, and what TensorBoard reads of it."""

import glob

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


def tensorboard_scalars(folder):
    """(tag, step, value) of every metric in the event files, in order."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2

    scalars = []
    for path in sorted(glob.glob(str(folder / "tensorboard" / "*"))):
        for data in tf.data.TFRecordDataset(path):
            event = event_pb2.Event.FromString(data.numpy())
            for value in event.summary.value:
                if value.tag.startswith(("train/", "eval/")):  # else: hparams, graph
                    number = float(tf.make_ndarray(value.tensor))
                    scalars.append((value.tag, event.step, number))
    return scalars
