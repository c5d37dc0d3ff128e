"""What a training loop writes to: a run's files, or nothing.

Of many workers one writes the files of the run (`RunFolder`, `Checkpoints`). The
others train the same and get the classes here that write nothing.
"""

from __future__ import annotations

import os
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import keras
import tensorflow as tf

from mp_loop.config import json_values
from mp_loop.run import checkpointing
from mp_loop.step import train_state


class Writer(Protocol):
    """Where a training is recorded; see `run_folder.RunFolder`."""

    folder: pathlib.Path
    rescued: bool
    failure: str

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints."""

    def log_setup(
        self, config: json_values.Object, graph: tf.Graph | None = None
    ) -> None:
        """Records what the run is."""

    def log(self, line: json_values.Object) -> None:
        """Records one line of training metrics."""

    def log_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Records one evaluation."""

    def log_numerics(self, line: json_values.Object) -> None:
        """Records what a probe saw."""

    def rewind(self, step: int) -> None:
        """Removes what was recorded after a step."""

    def sync(self) -> None:
        """Waits until every line is on the disk."""

    def rescue(self, why: str) -> str | None:
        """Continues in another folder; returns it, or None if none can be written."""

    def write_model(self, model: keras.Model) -> None:
        """Writes the trained model."""

    def write_predictor(
        self,
        predictor: keras.Model | None,
        class_names: Sequence[str],
        columns: Sequence[str] = (),
        save_tokenizer: Callable[[str], None] | None = None,
    ) -> None:
        """Writes what predicts from raw inputs."""

    def write_test_results(self, found: json_values.Object | None) -> None:
        """Writes what the trained model gets right and wrong."""

    def write_coverage(self, values: json_values.Object) -> None:
        """Records how much of the model multiplies in 16 bits."""

    def write_summary(self, summary: json_values.Object) -> None:
        """Writes what came of the run."""

    def close_logs(self) -> None:
        """Ends the recording."""

    def close(self) -> None:
        """Lets others use the folder."""


class CheckpointStore(Protocol):
    """What a training loop saves to and goes back to."""

    since_line: Mapping[str, float]

    def save(
        self,
        metrics: Mapping[str, float] | None = None,
        retried: bool = False,
        since_line: Mapping[str, float] | None = None,
    ) -> None:
        """Saves the state as it is now."""

    def wait(self) -> None:
        """Waits until nothing is being written."""

    def check(self) -> None:
        """Raises SaveError if a write has failed; does not wait."""

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation is better than all before."""

    def begin(self, phase: int, state: train_state.TrainState) -> None:
        """From now on another phase of the training is saved."""

    def move(self, folder: str | os.PathLike[str]) -> None:
        """From now on checkpoints go to another folder."""

    def best(self) -> checkpointing.Entry | None:
        """Finds the checkpoint of the best evaluation."""

    def restore_best(self) -> checkpointing.Entry | None:
        """Restores the checkpoint of the best evaluation."""

    def restore_healthy(self) -> checkpointing.Entry | None:
        """Restores the newest checkpoint from which it is worth continuing."""

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints after a step."""


class NullWriter:
    """Records nothing: for a worker that writes no files."""

    rescued = False
    failure = ""
    folder = pathlib.Path(os.devnull)
    checkpoints = os.devnull

    def log_setup(
        self, config: json_values.Object, graph: tf.Graph | None = None
    ) -> None:
        """Does nothing."""

    def log(self, line: json_values.Object) -> None:
        """Does nothing."""

    def log_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def log_numerics(self, line: json_values.Object) -> None:
        """Does nothing."""

    def rewind(self, step: int) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def rescue(self, why: str) -> str | None:
        """Returns None."""
        return None

    def write_model(self, model: keras.Model) -> None:
        """Does nothing."""

    def write_predictor(
        self,
        predictor: keras.Model | None,
        class_names: Sequence[str],
        columns: Sequence[str] = (),
        save_tokenizer: Callable[[str], None] | None = None,
    ) -> None:
        """Does nothing."""

    def write_test_results(self, found: json_values.Object | None) -> None:
        """Does nothing."""

    def write_coverage(self, values: json_values.Object) -> None:
        """Does nothing."""

    def write_summary(self, summary: json_values.Object) -> None:
        """Does nothing."""

    def close_logs(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class NullCheckpoints:
    """Saves nothing: for a worker that writes no files."""

    since_line: Mapping[str, float] = types.MappingProxyType({})

    def save(
        self,
        metrics: Mapping[str, float] | None = None,
        retried: bool = False,
        since_line: Mapping[str, float] | None = None,
    ) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Does nothing."""

    def check(self) -> None:
        """Does nothing."""

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Returns False."""
        return False

    def best(self) -> None:
        """Finds none."""

    def restore_best(self) -> None:
        """Restores none."""

    def begin(self, phase: int, state: train_state.TrainState) -> None:
        """Does nothing."""

    def move(self, folder: str | os.PathLike[str]) -> None:
        """Does nothing."""

    def restore_healthy(self) -> checkpointing.Entry | None:
        """Returns None."""
        return None

    def forget_after(self, step: int) -> None:
        """Does nothing."""
