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
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mp_loop.distributed import replicas
from mp_loop.step import gradients


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
        scaled_grads: gradients.Gradients,
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

        grads = [gradients.map_gradient(unscaled, grad) for grad in scaled_grads]
        if any(grad is not None for grad in grads):
            replicas.call_once(self._apply, *grads)
        select(apply, variables, before)

    def _apply(self, *grads: gradients.Gradient) -> None:
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
        infinite for good, and the weight stops updating.
        """
        return not isinstance(self._optimizer, keras.optimizers.SGD)

    def __call__(
        self,
        scaled_grads: gradients.Gradients,
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


def select(
    keep: tf.Tensor, variables: Sequence[tf.Variable], before: Sequence[tf.Tensor]
) -> None:
    """Puts `before` back into the variables unless `keep` (bool [])."""
    for variable, old in zip(variables, before, strict=True):
        variable.assign(tf.where(keep, variable, old))
