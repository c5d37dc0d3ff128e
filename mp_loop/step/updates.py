"""Applies scaled gradients to master weights, or leaves every bit as it was.

    update = make(optimizer, model.trainable_variables)
    applied = update(scaled_grads, scale, grads_finite, largest)

What an update would write is part of the check: it is made only if every number that
was finite stays so. There are two ways:

    KerasUpdate   any Keras optimizer, as it is: what it wrote is checked, and undone
    FusedUpdate   SGD, Adam and AdamW on TensorFlow's own kernels, in place: whether
                  all stays finite is known before, from a few numbers
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from mp_loop.distributed import replicas
from mp_loop.step import gradients, optimizers

# w + d is finite for every finite float32 w if |d| < 2^103, half a unit in the last
# place of the largest: the sum is rounded to that. Half of it, for rounding on the way.
_LARGEST_CHANGE = 2.0**102
# The square of such a gradient is finite, and the sum of the squares of four.
_LARGEST_GRADIENT = 2.0**63
# Updates wait for one another in about so many parts of equal size: to wait for each
# of hundreds of small ones takes longer than to update it.
_PARTS = 16
# With a smaller epsilon, Adam's largest possible change says nothing.
_SMALLEST_EPSILON = 1e-10


class KerasUpdate:
    """The general path: any Keras optimizer, made skippable from outside.

    Keras on TensorFlow has no pure update, so the variables are remembered,
    the optimizer is applied to gradients that are zero on a skip, and what was
    remembered is selected back.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        masters: Sequence[keras.Variable],
        checked: bool = True,
    ):
        """Builds the optimizer's slots.

        Args:
          optimizer: any Keras optimizer but LossScaleOptimizer.
          masters: the trainable float32 variables, in the order of the gradients.
          checked: whether an update that writes inf or NaN is undone.

        Raises:
          ValueError: the optimizer scales the loss by itself.
        """
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if scales or getattr(optimizer, "loss_scale_factor", None):
            raise ValueError(
                f"`optimizer` ({optimizer.name}) must not scale the loss: the step "
                "does. Pass the optimizer that it wraps, without `loss_scale_factor`."
            )
        optimizer.build(masters)
        self._optimizer = optimizer
        self._masters = list(masters)
        self._checked = checked
        self.slots = [variable.value for variable in optimizer.variables]

    @property
    def learning_rate(self) -> tf.Tensor:
        """The rate of the next update, float32 []; of many optimizers the largest."""
        return optimizers.learning_rate(self._optimizer)

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
        largest: tf.Tensor,
        factor: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Updates masters and slots where `apply`, else changes no bit of them.

        Args:
          scaled_grads: one for each master, float32 or 16 bits; None where there is
            none; a sparse one is left to the optimizer.
          scale: float32 [], what the gradients are divided by.
          apply: bool [].
          largest: float32 [], what no number of the gradients is larger than.
          factor: float32 [], what they are multiplied by then, or None.

        Returns:
          bool [], whether the update was made: not if it would have made something
          infinite or NaN that was not.
        """
        del largest  # what was written tells
        masters = [variable.value for variable in self._masters]
        unique = {id(variable): variable for variable in [*self.slots, *masters]}
        variables = list(unique.values())
        before = [tf.identity(variable) for variable in variables]

        def unscaled(grad: tf.Tensor) -> tf.Tensor:
            grad = tf.cast(grad, tf.float32) / scale  # 16 bits -> float32
            return tf.where(apply, grad if factor is None else grad * factor, 0)

        grads = [gradients.map_gradient(unscaled, grad) for grad in scaled_grads]
        if any(grad is not None for grad in grads):
            replicas.call_once(self._apply, *grads)
        if self._checked:
            apply &= _stayed_finite(variables, before)
        select(apply, variables, before)
        return apply

    def _apply(self, *grads: gradients.Gradient) -> None:
        self._optimizer.apply(grads, self._masters)


class FusedUpdate(KerasUpdate):
    """The fast path: one kernel updates a master and its slots in place.

    The kernels take the optimizer's own slots, so a checkpoint fits both paths. The
    gradient is unscaled in one pass, as `scaled_grad * (1 / scale)`: exactly the
    quotient for powers of two.

    On a processor a skip is a branch that does nothing. Elsewhere a branch would wait
    for the host or for other replicas, and a select puts back what was there.
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
        averages = ("momentum", "beta_1", "beta_2")
        return (
            type(optimizer) in known
            and not any(getattr(optimizer, name, None) for name in extras)
            and all(0 <= getattr(optimizer, name, 0) < 1 for name in averages)
            and getattr(optimizer, "epsilon", 1.0) >= _SMALLEST_EPSILON
            and 0 <= (optimizer.weight_decay or 0) <= 1
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
        largest: tf.Tensor,
        factor: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Does what `KerasUpdate` does."""
        inverse = 1.0 / scale if factor is None else factor / scale
        apply &= self._stays_finite(largest, inverse)
        missing = [
            master.path
            for master, grad in zip(self._masters, scaled_grads, strict=True)
            if grad is None
        ]
        if missing:  # Keras' optimizers warn likewise, once for each trace
            warnings.warn(f"No gradient reaches {', '.join(missing)}.", stacklevel=2)

        def update() -> tf.Tensor:
            self._update_all(scaled_grads, inverse)
            return tf.constant(True)

        if _may_branch(self._optimizer.iterations.value):
            return tf.cond(apply, update, lambda: tf.constant(False))
        self._update_all(scaled_grads, inverse, apply)
        return apply

    def _update_all(
        self,
        scaled_grads: gradients.Gradients,
        inverse: tf.Tensor,
        keep: tf.Tensor | None = None,
    ) -> None:
        """Updates some masters after the others, each with its slots.

        So float32 gradients, and what a skip puts back, exist for a part at a time.

        Args:
          scaled_grads: as for `KerasUpdate`.
          inverse: float32 [], what they are multiplied by.
          keep: bool [], whether to keep what is written; None: it is.
        """
        optimizer, rate = self._optimizer, self.learning_rate
        is_sgd = isinstance(optimizer, keras.optimizers.SGD)
        step = self._sgd(rate) if is_sgd else self._adam(rate)

        def update(index: int, scaled_grad: tf.Tensor) -> None:
            master = self._masters[index]
            grad = tf.cast(scaled_grad, tf.float32) * inverse  # 16 bits -> float32
            if optimizer.weight_decay and optimizer._use_weight_decay(master):
                value = master.value
                value.assign(value - value * optimizer.weight_decay * rate)
            step(index, grad)

        sizes = [math.prod(master.shape) for master in self._masters]
        part, done, size = sum(sizes) / _PARTS, [], 0
        for index, scaled_grad in enumerate(scaled_grads):
            if scaled_grad is None:
                continue
            variables = self._of_master(index)
            with tf.control_dependencies(done):
                if keep is None:
                    update(index, scaled_grad)
                else:
                    before = [tf.identity(variable) for variable in variables]
                    update(index, scaled_grad)
                    select(keep, variables, before)
                size += sizes[index]
                if size > part:
                    done, size = [tf.identity(variables[0])], 0
        iterations = optimizer.iterations.value
        more = 1 if keep is None else tf.cast(keep, iterations.dtype)
        replicas.assign(iterations, iterations + more)

    def _of_master(self, index: int) -> list[tf.Variable]:
        """Returns a master and its slots."""
        optimizer = self._optimizer
        if not isinstance(optimizer, keras.optimizers.SGD):
            slots = [optimizer._momentums[index], optimizer._velocities[index]]
        else:
            slots = [optimizer.momentums[index]] if optimizer.momentum else []
        return [self._masters[index].value, *(slot.value for slot in slots)]

    def _stays_finite(self, largest: tf.Tensor, inverse: tf.Tensor) -> tf.Tensor:
        """Tells whether all that the kernels would write is finite, bool [].

        Nothing is read but this: masters may be any finite numbers, and slots what
        such updates leave. A sum of gradients that decays by `momentum` is at most
        the largest divided by `1 - momentum`; an average is at most the largest.

        Args:
          largest: float32 [], what no number of the scaled gradients is larger than.
          inverse: float32 [], what they are multiplied by.
        """
        optimizer, rate = self._optimizer, self.learning_rate
        largest = largest * inverse
        if isinstance(optimizer, keras.optimizers.SGD):
            change = tf.abs(rate) * largest / (1 - optimizer.momentum)
            # TensorFlow may multiply by the two factors at once.
            finite = (change < _LARGEST_CHANGE) & tf.math.is_finite(rate * inverse)
        else:
            first, second = map(self._power, (optimizer.beta_1, optimizer.beta_2))
            alpha = tf.abs(rate) * tf.sqrt(1 - second) / (1 - first)
            # |m| / (sqrt(v) + epsilon) <= 2 * largest / epsilon, rounding included.
            highest = 2 * _LARGEST_GRADIENT / min(optimizer.epsilon, 1.0)
            finite = (largest <= _LARGEST_GRADIENT) & (
                alpha * highest < _LARGEST_CHANGE
            )
        if optimizer.weight_decay:
            part = rate * optimizer.weight_decay
            finite &= (part >= 0) & (part <= 1)
        return finite

    def _power(self, beta: float) -> tf.Tensor:
        """Returns `beta` to the power of the number of the next update."""
        update = tf.cast(self._optimizer.iterations.value + 1, tf.float32)
        return tf.pow(tf.constant(beta, tf.float32), update)

    def _sgd(self, rate: tf.Tensor) -> Callable[[int, tf.Tensor], None]:
        """Keras: m = momentum * m - rate * g; w += m, or Nesterov's w += m'."""
        optimizer, momentum = self._optimizer, self._optimizer.momentum

        def step(index: int, grad: tf.Tensor) -> None:
            master = self._masters[index].value
            if not momentum:
                tf.raw_ops.ResourceApplyGradientDescent(
                    var=master.handle, alpha=rate, delta=grad
                )
                return
            m = optimizer.momentums[index].value
            m.assign(m * momentum - grad * rate)
            change = m * momentum - grad * rate if optimizer.nesterov else m
            master.assign_add(change)

        return step

    def _adam(self, rate: tf.Tensor) -> Callable[[int, tf.Tensor], None]:
        """Kingma and Ba 2015 with epsilon outside the corrected root, as Keras."""
        optimizer = self._optimizer
        arguments = {
            "beta1_power": self._power(optimizer.beta_1),
            "beta2_power": self._power(optimizer.beta_2),
            "lr": rate,
            "beta1": optimizer.beta_1,
            "beta2": optimizer.beta_2,
            "epsilon": optimizer.epsilon,
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
      fused: if False, Keras' own update, bit for bit, whatever it writes.
    """
    masters = list(masters)
    if fused and FusedUpdate.can(optimizer, masters):
        return FusedUpdate(optimizer, masters)
    return KerasUpdate(optimizer, masters, checked=fused)


def select(
    keep: tf.Tensor, variables: Sequence[tf.Variable], before: Sequence[tf.Tensor]
) -> None:
    """Puts `before` back into the variables unless `keep` (bool [])."""
    for variable, old in zip(variables, before, strict=True):
        replicas.assign(variable, tf.where(keep, variable, old))


def _stayed_finite(
    variables: Sequence[tf.Variable], before: Sequence[tf.Tensor]
) -> tf.Tensor:
    """Tells whether no number became inf or NaN that was neither before, bool []."""
    checks = [
        tf.reduce_all(tf.math.is_finite(variable) | ~tf.math.is_finite(old))
        for variable, old in zip(variables, before, strict=True)
        if variable.dtype.is_floating
    ]
    return tf.reduce_all(checks)


def _may_branch(variable: tf.Variable) -> bool:
    """Tells whether a branch around an update of the variable waits for nothing."""
    if tf.distribute.has_strategy():
        return False  # nor can mirrored variables be assigned in one
    return tf.DeviceSpec.from_string(variable.device).device_type in (None, "CPU")
