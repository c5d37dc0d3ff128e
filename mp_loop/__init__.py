"""A TensorFlow training loop with handwritten mixed precision.

    step = mp_loop.TrainStep(model, keras.optimizers.Adam(1e-3), loss, "float16")
    for inputs, labels in dataset:
        metrics = step(inputs, labels)      # loss, grads_finite, loss_scale, ...
    model.save("trained.keras")             # an ordinary float32 model

    model = mp_loop.for_fit(model, "float16")    # or inside Keras' own `fit`
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(dataset)

`TrainStep` takes the steps, `EvalStep` evaluates, `for_fit` does the same inside
`model.fit`. `DynamicLossScale`, `StaticLossScale` and `NoLossScale` are the rules of
the loss scale, and `LossScaleState` is what they change. `half_precision_twin` makes
the 16-bit model alone, and `coverage` tells how much of it multiplies in 16 bits.
`Checkpoints` saves and restores a training, `Probe` looks into a step and leaves no
trace, and `best_precision` says which precision is the fastest on this machine.
README.md describes the commands (`python -m mp_loop.train --help`).
"""

import importlib
from typing import Any

_HOME = {
    "Checkpoints": "run.checkpointing",
    "DynamicLossScale": "step.loss_scale",
    "EvalStep": "step.eval_step",
    "LossScaleState": "step.loss_scale",
    "NoLossScale": "step.loss_scale",
    "Probe": "numerics.probe",
    "StaticLossScale": "step.loss_scale",
    "TrainStep": "step.train_step",
    "TrainingDiverged": "run.divergence",
    "best_precision": "hardware.machine",
    "coverage": "precision.coverage",
    "for_fit": "step.fit",
    "half_precision_twin": "precision.twins",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Imports on first use: a command must refuse a bad flag before TensorFlow."""
    if name not in _HOME:
        raise AttributeError(f"module 'mp_loop' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"mp_loop.{_HOME[name]}"), name)
    globals()[name] = value  # the next use finds it without this function
    return value
