"""Mixed precision inside `model.fit`: your model, its `train_step` ours.

    model = mp_loop.for_fit(model, "float16")
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(data, epochs=3, callbacks=[...], class_weight=...)
    model.save("trained.keras")            # an ordinary float32 model

The model stays the object and the class it was: only how it takes a training step
is replaced. `evaluate`, `predict` and `save` use its float32 weights, as ever.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mp_loop.hardware import devices
from mp_loop.step import loss_scale, placement, train_step


def for_fit(
    model: keras.Model,
    precision: str = "float16",
    loss_scale: loss_scale.LossScale | None = None,
    **arguments: Any,
) -> keras.Model:
    """Lets `fit` and `train_on_batch` of a model train with mixed precision.

    What `compile` and `fit` can do works as before: metrics, callbacks,
    `class_weight`, `sample_weight`, `steps_per_execution`, several outputs. Weights
    that a callback sets are used by the next step. The logs also hold `loss_scale`
    and `skipped_steps` (of all steps since `compile`); the `loss` of an epoch is the
    mean over the batches whose loss was finite. `jit_compile="auto"` means XLA on a
    GPU alone: on a processor the plain kernels are faster.

    Args:
      model: as for `TrainStep`.
      precision: "float16", "bfloat16" or "float32".
      loss_scale: as for `TrainStep`. `compile` starts it anew.
      **arguments: others of `TrainStep`: `twin`, `float32_layers`, `clip_norm`,
        `keras_arithmetic`.

    Returns:
      The same model. `model.mixed_precision.step` is its `TrainStep`, from the first
      batch on.

    Raises:
      ValueError: the model has a `train_step` or a `compute_loss` of its own, or an
        argument has no meaning here, by name. When training starts: as `TrainStep`,
        or there is more than one replica.
    """
    for name in ("train_step", "compute_loss"):
        own = getattr(model, name)
        if getattr(own, "__func__", own) is not getattr(keras.Model, name):
            raise ValueError(
                f"`model` ({model.name}) must not have a `{name}` of its own."
            )
    for name in ("accumulate_steps", "jit_compile"):
        if name in arguments:
            raise ValueError(
                f"`{name}` ({arguments[name]}) is not available in `fit`: pass "
                "`gradient_accumulation_steps` to the optimizer or `jit_compile` to "
                "`compile`."
            )
    arguments |= {"precision": precision, "loss_scale": loss_scale}
    fitting = _Fit(model, arguments)
    model.make_train_function = fitting.make_train_function
    model.train_step = fitting.train_step
    model.mixed_precision = fitting
    return model


class _Fit:
    """What `fit` calls instead of the model's own methods.

    Attributes:
      step: the `TrainStep`; None before the first batch.
    """

    def __init__(self, model: keras.Model, arguments: dict[str, Any]):
        self._model = model
        self._arguments = arguments
        self._make_train_function = model.make_train_function
        self.step = None

    def make_train_function(self, force: bool = False) -> None:
        model = self._model
        if force or model.train_function is None:  # first use since `compile`
            replicas = model.distribute_strategy.num_replicas_in_sync
            if replicas > 1:
                raise ValueError(f"`fit` takes one replica, not {replicas}.")
            if model._compile_loss is None:
                raise ValueError("`loss` (None) must be given to `compile`.")
            if model._compile_config.config.get("jit_compile") == "auto":
                model.jit_compile = model.jit_compile and devices.use_xla("auto")
            self.step = train_step.TrainStep(
                model, model.optimizer, _CompiledLoss(model), **self._arguments
            )
            self._take_step = self._one_step
            if model.jit_compile and not model.run_eagerly:
                self._take_step = placement.Compiled(
                    self._one_step,
                    model,
                    self._leave_xla,
                    reduce_retracing=True,
                )
        # Keras would compile what calls our step, and then there is no way back.
        jit_compile, model.jit_compile = model.jit_compile, False
        self._make_train_function(force)
        model.jit_compile = jit_compile

    def train_step(self, data: Any) -> dict[str, Any]:
        return self._take_step(data)

    def _leave_xla(self) -> None:
        self._model.jit_compile = False  # nor can evaluation be compiled

    def _one_step(self, data: Any) -> dict[str, Any]:
        model, step = self._model, self.step
        inputs, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        step.reload()  # a callback may have set the masters
        trace = step.trace(inputs, labels, sample_weight)
        metrics = trace.metrics
        finite = metrics["forward_finite"]
        size = tf.shape(tf.nest.flatten(inputs)[0])[0]
        mean = model._loss_tracker
        mean.update_state(
            tf.where(finite, metrics["loss"], 0.0),
            sample_weight=tf.where(finite, size, 0),
        )
        logs = model.compute_metrics(inputs, labels, trace.outputs, sample_weight)
        logs["loss"] = tf.where(mean.count > 0, mean.result(), float("nan"))
        logs["loss_scale"] = metrics["loss_scale"]
        logs["skipped_steps"] = step.state.skipped_steps.read_value()
        return logs


class _CompiledLoss(keras.losses.Loss):
    """The loss that `compile` made of its arguments."""

    def __init__(self, model: keras.Model):
        super().__init__()
        self._model = model

    def __call__(self, labels: Any, outputs: Any, sample_weight: Any = None) -> Any:
        return self._model._compile_loss(labels, outputs, sample_weight)
