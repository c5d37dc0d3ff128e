"""mp_loop: a TensorFlow training loop with handwritten mixed precision."""

import importlib
from typing import Any

_HOME = {
    "Checkpoints": "run.checkpointing",
    "DynamicLossScale": "step.loss_scale",
    "EvalStep": "step.eval_step",
    "LossScaleState": "step.loss_scale",
    "NoLossScale": "step.loss_scale",
    "StaticLossScale": "step.loss_scale",
    "TrainStep": "step.train_step",
    "TrainingDiverged": "run.loop",
    "best_precision": "hardware.machine",
    "for_fit": "step.fit",
    "half_precision_twin": "precision.twins",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Imports on first use: a command must refuse a bad flag before TensorFlow."""
    if name not in _HOME:
        raise AttributeError(f"module 'mp_loop' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mp_loop.{_HOME[name]}"), name)
