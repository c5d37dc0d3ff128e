"""Mixed precision inside `model.fit`: your model, its `train_step` ours.

    model = mp_loop.for_fit(model, "float16")
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(data, epochs=3, callbacks=[...], class_weight=...)
    model.save("trained.keras")            # an ordinary float32 model

The model stays the object and the class it was: only how it takes a training step
is replaced. `evaluate`, `predict` and `save` use its float32 weights, as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.hardware import devices
from mp_loop.step import gradients, loss_scale, losses, placement, train_step, updates

# What the logs hold beside Keras'.
_LOGS = ("loss_scale", "skipped_steps")


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
    and `skipped_steps` (of all steps since `compile`); loss and metrics of an epoch are
    those of the batches whose loss was finite, NaN if there was none.
    `jit_compile="auto"` means XLA on a GPU alone: on a processor the plain kernels are
    faster. A model with a `compute_loss` of its own is trained on that. Called again,
    the last call counts.

    Args:
      model: as for `TrainStep`.
      precision: "float16", "bfloat16" or "float32".
      loss_scale: as for `TrainStep`. `compile` starts it anew, and so does a model
        that was loaded: it is in no saved model. A rule with the last `loss_scale` of
        the logs as its `initial_scale` goes on from there.
      **arguments: others of `TrainStep`: `twin`, `float32_layers`, `clip_norm`,
        `keras_arithmetic`.

    Returns:
      The same model. `model.mixed_precision.step` is its `TrainStep`, from the first
      batch on.

    Raises:
      ValueError: the model has a `train_step` of its own, or an argument has no
        meaning here, by name. When training starts: as `TrainStep`, or there is more
        than one replica.
    """
    previous = getattr(model, "mixed_precision", None)
    if isinstance(previous, _Fit):
        previous.leave()
    if _has_own(model, "train_step"):
        raise ValueError(
            f"`model` ({model.name}) must not have a `train_step` of its own, whose "
            "forward pass would run in float32. Move its loss to a `compute_loss`, or "
            "take the steps with `mp_loop.TrainStep` and a loss function."
        )
    for name in ("accumulate_steps", "jit_compile"):
        if name in arguments:
            raise ValueError(
                f"`{name}` ({arguments[name]}) is not available in `fit`: pass "
                "`gradient_accumulation_steps` to the optimizer or `jit_compile` to "
                "`compile`."
            )
    arguments |= {"precision": precision, "loss_scale": loss_scale}
    model.mixed_precision = _Fit(model, arguments)
    return model


def _has_own(model: keras.Model, name: str) -> bool:
    """Tells whether a method is not the one of `keras.Model`."""
    method = getattr(model, name)
    return getattr(method, "__func__", method) is not getattr(keras.Model, name)


class _Fit:
    """What `fit` calls instead of the model's own methods.

    Attributes:
      step: the `TrainStep`; None before the first batch.
    """

    _REPLACED = ("make_train_function", "train_on_batch", "train_step")

    def __init__(self, model: keras.Model, arguments: dict[str, Any]):
        """Replaces the methods."""
        self._model = model
        self._arguments = arguments
        self._make_train_function = model.make_train_function
        self._train_on_batch = model.train_on_batch
        self.step = None
        for name in self._REPLACED:
            setattr(model, name, getattr(self, name))
        model.train_function = None  # of a `fit` before, in float32

    def leave(self) -> None:
        """Gives the model its own methods back."""
        for name in self._REPLACED:
            delattr(self._model, name)

    def make_train_function(self, force: bool = False) -> None:
        model = self._model
        if force or model.train_function is None:  # first use since `compile`
            replicas = model.distribute_strategy.num_replicas_in_sync
            if replicas > 1:
                raise ValueError(f"`fit` takes one replica, not {replicas}.")
            if model._compile_config.config.get("jit_compile") == "auto":
                model.jit_compile = model.jit_compile and devices.use_xla("auto")
            self.step = None
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

    def train_on_batch(
        self,
        x: nests.Nest,
        y: nests.Nest = None,
        sample_weight: nests.Nest = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> nests.Nest:
        logs = self._train_on_batch(x, y, sample_weight, class_weight, return_dict=True)
        if return_dict:
            return logs
        kept = {name: logs[name] for name in logs if name not in _LOGS}
        return self._model._flatten_metrics_in_order(kept)

    def train_step(self, data: nests.Nest) -> dict[str, nests.Nest]:
        if self.step is None:
            with tf.init_scope():  # outside of the function that is being traced
                self._build(data)
        _, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.control_dependencies(self._check_labels(labels)):
            return self._take_step(data)

    def _check_labels(self, labels: nests.Nest) -> list[tf.Operation]:
        compiled = self._model._compile_loss
        if compiled is None:
            return []
        try:
            loss = losses.of(compiled._user_loss, names=compiled.output_names)
            return self.step.gradients.check_labels(labels, loss)
        except ValueError:  # Keras reconciles more structures and names
            return []

    def _build(self, data: nests.Nest) -> None:
        """Makes the step, and all variables that Keras would make in the first one."""
        model = self._model
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(_scaled_twice(model))
        if not model.run_eagerly or not model.built:
            model._symbolic_build(data_batch=data)
        self.step = train_step.TrainStep(
            model, model.optimizer, _loss(model), **self._arguments
        )
        if _has_own(model, "compute_loss"):
            self.step.gradients.total = self._own_loss

    def _own_loss(
        self, batch: gradients.Batch, outputs: nests.Nest, added: list[tf.Tensor]
    ) -> tf.Tensor:
        """The model's own, for which `model.losses` are those of the twin."""
        model, outputs = self._model, gradients.outputs_in_float32(outputs)
        before, model._losses_override = model._losses_override, added
        try:
            return tf.cast(
                model._compute_loss(batch[0], batch[1], outputs, batch[2]), tf.float32
            )
        finally:
            model._losses_override = before

    def _leave_xla(self) -> None:
        self._model.jit_compile = False  # nor can evaluation be compiled

    def _one_step(self, data: nests.Nest) -> dict[str, nests.Nest]:
        model, step = self._model, self.step
        inputs, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        counted = [v.value for metric in model.metrics for v in metric.variables]
        before = [tf.identity(variable) for variable in counted]
        step.reload()  # a callback may have set the masters
        trace = step.trace(inputs, labels, sample_weight)
        metrics = trace.metrics
        mean = model._loss_tracker
        size = tf.shape(tf.nest.flatten(inputs)[0])[0]
        mean.update_state(metrics["loss"], sample_weight=size)
        logs = model.compute_metrics(inputs, labels, trace.outputs, sample_weight)
        # A batch that overflowed says nothing about the loss and metrics of an epoch.
        updates.select(metrics["forward_finite"], counted, before)
        logs = tf.nest.map_structure(
            functools.partial(_or_nan, mean.count > 0),
            {**logs, **model.get_metrics_result()},
        )
        logs["loss_scale"] = metrics["loss_scale"]
        logs["skipped_steps"] = step.state.skipped_steps.read_value()
        return logs


def _or_nan(some: tf.Tensor, result: tf.Tensor) -> tf.Tensor:
    """Returns the result of a metric, or NaN where it has seen nothing."""
    result = tf.convert_to_tensor(result)
    return tf.where(some, result, float("nan")) if result.dtype.is_floating else result


def _scaled_twice(model: keras.Model) -> str:
    """Says why an optimizer that scales the loss is refused, and the way on."""
    said = (
        f"`optimizer` ({model.optimizer.name}) must not scale the loss: the step does."
    )
    if model.dtype_policy.name == "mixed_float16":
        return (
            f"{said} Keras wrapped it, because the model was made under the policy "
            'mixed_float16: call `keras.config.set_dtype_policy("float32")` before.'
        )
    return f"{said} Give its `inner_optimizer` to `compile`."


def _loss(model: keras.Model) -> losses.LossLike:
    """Returns the loss that `compile` was given, or what it made of several."""
    compiled = model._compile_loss
    if compiled is None:
        return None
    given, weights = compiled._user_loss, compiled._user_loss_weights
    single = weights is None and not tf.nest.is_nested(given)
    if single and len(compiled.output_names or []) < 2 and losses.takes_narrow(given):
        return given
    return _CompiledLoss(model)


class _CompiledLoss(keras.losses.Loss):
    """The loss that `compile` made of its arguments."""

    def __init__(self, model: keras.Model):
        super().__init__()
        self._model = model

    def __call__(
        self, labels: nests.Nest, outputs: nests.Nest, sample_weight: nests.Nest = None
    ) -> tf.Tensor:
        return self._model._compile_loss(labels, outputs, sample_weight)
