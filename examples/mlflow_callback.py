"""Runs in MLflow: add `--callbacks=examples.mlflow_callback:make` to a training.

Without a server or a network MLflow writes them to a file; `mlflow ui` shows them.
(`pip install mlflow`)
"""

from __future__ import annotations

from typing import Any

import keras
import mlflow


class Log(keras.callbacks.Callback):
    """Logs the settings, each line of metrics and each evaluation of a run."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        self._settings = settings

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begins a run of the name of its folder."""
        mlflow.start_run(run_name=self._settings["output_dir"])
        mlflow.log_params(self._settings)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Is told of each line of metrics: the batch is the last one of it."""
        mlflow.log_metrics(logs, step=batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Is told of each evaluation: `val_loss`, `val_accuracy`."""
        found = {name: logs[name] for name in logs if name.startswith("val_")}
        mlflow.log_metrics(found, step=(epoch + 1) * self.params["steps"])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Ends the run."""
        mlflow.end_run()


def make(settings: dict[str, Any]) -> keras.callbacks.Callback:
    """What --callbacks names."""
    return Log(settings)
