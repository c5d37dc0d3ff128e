"""mp_loop: a TensorFlow training loop with handwritten mixed precision."""

import importlib
from typing import Any

_HOME = {
    "Checkpoints": "checkpoints",
    "DynamicLossScale": "loss_scale",
    "EvalStep": "step",
    "LossScaleState": "loss_scale",
    "NoLossScale": "loss_scale",
    "StaticLossScale": "loss_scale",
    "TrainStep": "step",
    "TrainingDiverged": "loop",
    "best_precision": "machine",
    "for_fit": "fit",
    "half_precision_twin": "precision",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Imports on first use: a command must refuse a bad flag before TensorFlow."""
    if name not in _HOME:
        raise AttributeError(f"module 'mp_loop' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mp_loop.{_HOME[name]}"), name)
