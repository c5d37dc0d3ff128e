"""A run's flags and lines, and what TensorBoard reads of it."""

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
