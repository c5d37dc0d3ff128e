"""Callbacks of a user: told what `fit` would tell, and never the end of a run."""

import csv
import logging
import types

import keras
import pytest

from mp_loop.config import errors, settings
from mp_loop.run import callbacks

METRICS = {
    "step": 4,
    "loss": 0.5,
    "accuracy": 0.25,
    "overflowed": {},
    "grad_norm": None,
}
EVALUATION = {"step": 8, "eval_loss": 0.75, "eval_accuracy": 0.5}


class Noting(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.told = []

    def on_train_begin(self, logs=None):
        self.told.append(("begin", self.model, self.params["steps"]))

    def on_train_batch_end(self, batch, logs=None):
        self.told.append((batch, logs))

    def on_epoch_end(self, epoch, logs=None):
        self.told.append((epoch, logs))

    def on_train_end(self, logs=None):
        self.told.append("end")


class Failing(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise OSError("no network")


RETURNED = []


def make(values):
    assert values["model"] == "cnn"
    return RETURNED[0] if len(RETURNED) == 1 else RETURNED


def broken(values):
    raise RuntimeError("no server")


def nothing(values):
    return None


def called(*found):
    RETURNED[:] = found
    built = types.SimpleNamespace(
        config=settings.Config(), model="the model", steps_per_epoch=4
    )
    return callbacks.of_function(f"{__name__}:make", built)


def run(told):
    told(METRICS)
    told(EVALUATION)
    told.close()


def test_lines_are_batches_and_evaluations_are_epochs():
    noting = Noting()
    run(called(noting))
    logs = {"loss": 0.5, "accuracy": 0.25}
    assert noting.told == [
        ("begin", "the model", 4),
        (3, logs),
        (1, logs | {"val_loss": 0.75, "val_accuracy": 0.5}),
        "end",
    ]


def test_those_of_keras_work(tmp_path):
    path = tmp_path / "log.csv"
    run(called(keras.callbacks.CSVLogger(str(path)), Noting()))
    with open(path) as file:
        (row,) = csv.DictReader(file)
    assert (row["epoch"], row["val_accuracy"], row["loss"]) == ("1", "0.5", "0.5")


def test_what_fails_is_told_no_more_and_ends_nothing(caplog):
    noting = Noting()
    with caplog.at_level(logging.WARNING):
        told = called(Failing(), noting)
        told(METRICS)
        run(told)
    (record,) = caplog.records
    assert record.getMessage() == (
        "--callbacks: Failing.on_train_batch_end raised OSError: no network; it is "
        "told no more."
    )
    assert noting.told[-1] == "end" and len(noting.told) == 5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{__name__}:absent", r"--callbacks \(.*absent\) cannot be found"),
        (f"{__name__}:called", "raised"),
        (f"{__name__}:broken", r"raised: RuntimeError: no server"),
        (f"{__name__}:nothing", "must return a keras.callbacks.Callback"),
    ],
)
def test_a_function_that_makes_none_is_refused(name, said):
    built = types.SimpleNamespace(config=settings.Config(), model=None)
    with pytest.raises(errors.UsageError, match=said):
        callbacks.of_function(name, built)
