"""Applies scaled gradients to master weights, or leaves every bit as it was.

    update = make(optimizer, model.trainable_variables)
    update(scaled_grads, scale, apply=grads_finite)        # branchless

The skip is arithmetic or a select, never a `tf.cond`: nothing waits for the
host, and the same code runs under XLA. There are two ways:

    KerasUpdate   any Keras optimizer, as it is
    FusedUpdate   SGD, Adam and AdamW on TensorFlow's own kernels, which need
                  neither a copy of every variable nor fifty operations for each
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from mp_loop.distributed import replicas

Grad = tf.Tensor | tf.IndexedSlices | None
Grads = Sequence[Grad]


class KerasUpdate:
    """The general path: any Keras optimizer, made skippable from outside.

    Keras on TensorFlow has no pure update, so the variables are remembered,
    the optimizer is applied to gradients that are zero on a skip, and what was
    remembered is selected back.
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, masters: Sequence[keras.Variable]
    ):
        """Builds the optimizer's slots.

        Args:
          optimizer: any Keras optimizer but LossScaleOptimizer.
          masters: the trainable float32 variables, in the order of the gradients.

        Raises:
          ValueError: the optimizer scales the loss by itself.
        """
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if scales or getattr(optimizer, "loss_scale_factor", None):
            raise ValueError(
                f"`optimizer` ({optimizer.name}) must not scale the loss: the step "
                "does."
            )
        optimizer.build(masters)
        self._optimizer = optimizer
        self._masters = list(masters)
        self.slots = [variable.value for variable in optimizer.variables]

    @property
    def learning_rate(self) -> tf.Tensor:
        """The rate of the next update, float32 []."""
        return tf.cast(tf.convert_to_tensor(self._optimizer.learning_rate), tf.float32)

    @property
    def needs_norm(self) -> bool:
        """Whether finite gradients of infinite norm would do harm: in clipping."""
        optimizer = self._optimizer
        return bool(optimizer.global_clipnorm or optimizer.clipnorm)

    def __call__(
        self,
        scaled_grads: Grads,
        scale: tf.Tensor,
        apply: tf.Tensor,
        factor: tf.Tensor | None = None,
    ) -> None:
        """Updates masters and slots where `apply`, else changes no bit of them.

        Args:
          scaled_grads: float32, one for each master; None where there is none;
            a sparse one is left to the optimizer.
          scale: float32 [], what the gradients are divided by.
          apply: bool [].
          factor: float32 [], what they are multiplied by then, or None.
        """
        masters = [variable.value for variable in self._masters]
        unique = {id(variable): variable for variable in [*self.slots, *masters]}
        variables = list(unique.values())
        before = [tf.identity(variable) for variable in variables]

        def unscaled(grad: tf.Tensor) -> tf.Tensor:
            grad = grad / scale if factor is None else grad / scale * factor
            return tf.where(apply, grad, 0)

        grads = [map_grad(unscaled, grad) for grad in scaled_grads]
        if any(grad is not None for grad in grads):
            replicas.call_once(self._apply, *grads)
        select(apply, variables, before)

    def _apply(self, *grads: Grad) -> None:
        self._optimizer.apply(grads, self._masters)


class FusedUpdate(KerasUpdate):
    """The fast path: one kernel updates a master and its slots in place.

    The kernels take the optimizer's own slots, so a checkpoint fits both paths.
    On a skip they are fed a gradient and a learning rate of 0 and decay rates of
    1, which leaves every bit as it was. The gradient is unscaled and masked in one
    pass, as `scaled_grad * (1 / scale)`: exactly the quotient for powers of two.
    """

    @classmethod
    def can(
        cls, optimizer: keras.optimizers.Optimizer, masters: Sequence[keras.Variable]
    ) -> bool:
        """Tells whether the kernels compute what the optimizer does."""
        optimizers = keras.optimizers
        known = (optimizers.SGD, optimizers.Adam, optimizers.AdamW)
        extras = (
            "amsgrad",
            "clipnorm",
            "clipvalue",
            "global_clipnorm",
            "gradient_accumulation_steps",
            "loss_scale_factor",
            "use_ema",
        )
        return (
            type(optimizer) in known
            and not any(getattr(optimizer, name, None) for name in extras)
            and all(v.constraint is None and v.dtype == "float32" for v in masters)
        )

    @property
    def needs_norm(self) -> bool:
        """Whether finite gradients of infinite norm would do harm: in Adam.

        A gradient whose square overflows float32 makes the second moment
        infinite for good, and the weight deaf.
        """
        return not isinstance(self._optimizer, keras.optimizers.SGD)

    def __call__(
        self,
        scaled_grads: Grads,
        scale: tf.Tensor,
        apply: tf.Tensor,
        factor: tf.Tensor | None = None,
    ) -> None:
        """Does what `KerasUpdate` does."""
        optimizer = self._optimizer
        inverse = 1.0 / scale if factor is None else factor / scale
        inverse = tf.where(apply, inverse, 0.0)
        rate = tf.where(apply, self.learning_rate, 0.0)
        if isinstance(optimizer, keras.optimizers.SGD):
            step = self._sgd(rate, apply)
        else:
            step = self._adam(rate, apply)
        missing = [
            master.path
            for master, grad in zip(self._masters, scaled_grads, strict=True)
            if grad is None
        ]
        if missing:  # Keras' optimizers warn likewise, once for each trace
            warnings.warn(f"No gradient reaches {', '.join(missing)}.", stacklevel=2)
        for index, scaled_grad in enumerate(scaled_grads):
            master = self._masters[index]
            if scaled_grad is None:
                continue
            if optimizer.weight_decay and optimizer._use_weight_decay(master):
                value = master.value
                value.assign(value - value * optimizer.weight_decay * rate)
            # x * 0 is 0 here even if x is inf or NaN.
            step(index, tf.math.multiply_no_nan(scaled_grad, inverse))
        iterations = optimizer.iterations.value
        iterations.assign_add(tf.cast(apply, iterations.dtype))

    def _sgd(self, rate: tf.Tensor, apply: tf.Tensor) -> Any:
        """Keras: m = momentum * m - rate * g; w += m, or Nesterov's w += m'."""
        optimizer = self._optimizer
        momentum = tf.where(apply, optimizer.momentum, 1.0)
        minus = tf.where(apply, -1.0, 0.0)

        def descend(variable: tf.Variable, rate: tf.Tensor, grad: tf.Tensor) -> None:
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=rate, delta=grad
            )

        def step(index: int, grad: tf.Tensor) -> None:
            master = self._masters[index].value
            if not optimizer.momentum:
                descend(master, rate, grad)
                return
            m = optimizer.momentums[index].value
            m.assign(m * momentum - grad * rate)
            # No kernel for these leaves the master alone when m is not 0.
            change = (
                m * momentum - grad * rate if optimizer.nesterov else m.read_value()
            )
            descend(master, minus, change)

        return step

    def _adam(self, rate: tf.Tensor, apply: tf.Tensor) -> Any:
        """Kingma and Ba 2015 with epsilon outside the corrected root, as Keras."""
        optimizer = self._optimizer
        update = tf.cast(optimizer.iterations.value + 1, tf.float32)
        # Powers of the true rates, never of 1: they are divided by.
        arguments = {
            "beta1_power": tf.pow(tf.constant(optimizer.beta_1, tf.float32), update),
            "beta2_power": tf.pow(tf.constant(optimizer.beta_2, tf.float32), update),
            "lr": rate,
            "beta1": tf.where(apply, optimizer.beta_1, 1.0),
            "beta2": tf.where(apply, optimizer.beta_2, 1.0),
            "epsilon": tf.constant(optimizer.epsilon, tf.float32),
        }

        def step(index: int, grad: tf.Tensor) -> None:
            tf.raw_ops.ResourceApplyAdam(
                var=self._masters[index].value.handle,
                m=optimizer._momentums[index].value.handle,
                v=optimizer._velocities[index].value.handle,
                grad=grad,
                **arguments,
            )

        return step


def make(
    optimizer: keras.optimizers.Optimizer,
    masters: Sequence[keras.Variable],
    fused: bool = True,
) -> KerasUpdate:
    """Returns the fastest update that computes what the optimizer does.

    Args:
      optimizer: any Keras optimizer but LossScaleOptimizer.
      masters: the trainable float32 variables, in the order of the gradients.
      fused: if False, Keras' own arithmetic, bit for bit.
    """
    masters = list(masters)
    fused = fused and FusedUpdate.can(optimizer, masters)
    return (FusedUpdate if fused else KerasUpdate)(optimizer, masters)


def map_grad(function: Callable[[tf.Tensor], tf.Tensor], grad: Grad) -> Grad:
    """Applies an elementwise function to a gradient: to the rows of a sparse one."""
    if isinstance(grad, tf.IndexedSlices):
        return tf.IndexedSlices(function(grad.values), grad.indices, grad.dense_shape)
    return None if grad is None else function(grad)


def select(
    keep: tf.Tensor, variables: Sequence[tf.Variable], before: Sequence[tf.Tensor]
) -> None:
    """Puts `before` back into the variables unless `keep` (bool [])."""
    for variable, old in zip(variables, before, strict=True):
        variable.assign(tf.where(keep, variable, old))


def clip_factor(norm: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """Returns what gradients of norm `norm` are multiplied by, float32 [].

    Args:
      norm: float32 [], finite or not.
      clip_norm: the largest norm allowed, above 0.
    """
    return tf.where(norm > clip_norm, clip_norm / norm, 1.0)


@keras.saving.register_keras_serializable(package="mp_loop")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that starts after a linear rise from zero.

    Update `i` (from 0) of the first `steps` ones uses `(i + 1) / steps` of the
    peak rate; the schedule then starts at its own update 0.
    """

    def __init__(
        self,
        schedule: float | keras.optimizers.schedules.LearningRateSchedule,
        peak: float,
        steps: int,
    ):
        self.schedule, self.peak, self.steps = schedule, peak, steps

    def __call__(self, applied_steps: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate, float32 [], of update `applied_steps`."""
        done = tf.cast(applied_steps, tf.float32)
        rest = tf.maximum(done - self.steps, 0.0)
        after = self.schedule(rest) if callable(self.schedule) else self.schedule
        if not self.steps:
            return tf.cast(after, tf.float32)
        rising = self.peak * (done + 1.0) / self.steps
        return tf.where(done < self.steps, rising, after)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {"schedule": self.schedule, "peak": self.peak, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Warmup:
        """Returns the schedule that `get_config` described."""
        inner = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": inner})


@keras.saving.register_keras_serializable(package="mp_loop")
class Lowered(keras.optimizers.schedules.LearningRateSchedule):
    """A rate or schedule times `factor` for each rollback there was.

    Attributes:
      rollbacks: variable, integer []; set it before the first step is traced.
    """

    def __init__(
        self,
        schedule: float | keras.optimizers.schedules.LearningRateSchedule,
        factor: float,
    ):
        self.schedule, self.factor = schedule, factor
        self.rollbacks: tf.Variable | int = 0

    def __call__(self, applied_steps: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate, float32 [], of update `applied_steps`."""
        rate = self.schedule
        rate = tf.cast(rate(applied_steps) if callable(rate) else rate, tf.float32)
        return rate * tf.pow(self.factor, tf.cast(self.rollbacks, tf.float32))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {"schedule": self.schedule, "factor": self.factor}


def learning_rate(
    schedule: str,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_fractions: Sequence[float] = (),
    decay_factor: float = 0.1,
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Makes a learning rate for a Keras optimizer; it reads `applied_steps`.

    Args:
      schedule: "constant", "cosine" or "linear" (both to zero), or "piecewise".
      peak: rate after warm-up.
      total_steps: updates of the whole run.
      warmup_steps: updates of the linear rise, fewer than `total_steps`.
      decay_fractions: piecewise: parts of the run after which the rate drops.
      decay_factor: piecewise: each drop multiplies by this.

    Raises:
      ValueError: the warm-up is as long as the run.
    """
    if warmup_steps and warmup_steps >= total_steps:
        raise ValueError(
            f"--warmup_steps ({warmup_steps}) must be fewer than the {total_steps} "
            "steps of the run."
        )
    schedules = keras.optimizers.schedules
    if schedule == "cosine":
        after = schedules.CosineDecay(peak, total_steps - warmup_steps)
    elif schedule == "linear":
        after = schedules.PolynomialDecay(peak, total_steps - warmup_steps, 0.0)
    elif schedule == "piecewise":
        boundaries = [round(f * total_steps) - warmup_steps for f in decay_fractions]
        values = [peak * decay_factor**i for i in range(len(boundaries) + 1)]
        after = schedules.PiecewiseConstantDecay([float(b) for b in boundaries], values)
    else:
        after = peak
    if schedule == "constant" and not warmup_steps:
        return peak
    return Warmup(after, peak, warmup_steps) if warmup_steps else after


def make_optimizer(
    name: str,
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    **arguments: float,
) -> keras.optimizers.Optimizer:
    """Makes one of the optimizers that flags can name.

    Args:
      name: "sgd", "momentum", "nesterov", "adam" or "adamw".
      rate: learning rate or schedule.
      momentum: for "momentum" and "nesterov".
      weight_decay: decoupled: an update takes `rate * weight_decay` of a weight off
        (Loshchilov and Hutter 2019, without their separate schedule). Biases and the
        parameters of normalization are exempt. Not for "adam".
      **arguments: passed on to Keras, such as `global_clipnorm`.
    """
    optimizers = keras.optimizers
    if name == "adam":
        return optimizers.Adam(rate, **arguments)
    if name == "adamw":
        optimizer = optimizers.AdamW(rate, weight_decay=weight_decay, **arguments)
    elif name in ("sgd", "momentum", "nesterov"):
        optimizer = optimizers.SGD(
            rate,
            momentum=0.0 if name == "sgd" else momentum,
            nesterov=name == "nesterov",
            weight_decay=weight_decay or None,
            **arguments,
        )
    else:
        raise ValueError(f"`name` ({name}) is not an optimizer that is known here.")
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
