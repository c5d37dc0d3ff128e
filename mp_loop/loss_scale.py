"""The loss-scale rule: a frozen value and a pure function.

    rule = DynamicLossScale(initial_scale=2.0**15, growth_interval=2000)
    state = rule.init()
    state = rule.next_state(state, grads_finite)    # eager, tf.function or XLA

Gradients too small for 16 bits are lost as zeros. Multiplying the loss by a
scale moves all of them up; dividing the float32 gradients by it afterwards
changes nothing else. The dynamic rule looks for the largest scale that does
not overflow:

    on an overflow:                scale *= backoff_factor, good_steps = 0
    on the N-th clean step running: scale *= growth_factor, good_steps = 0

Source: Micikevicius et al. 2017 (arXiv 1710.03740), section 3.2.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, NamedTuple

import tensorflow as tf

# The normal float32 numbers: a scale among them is never 0, inf or NaN.
SMALLEST = 2.0**-126
LARGEST = float(tf.float32.max)


class LossScaleState(NamedTuple):
    """What changes from step to step.

    Attributes:
      scale: float32 [], what the loss is multiplied by.
      good_steps: int32 [], clean steps since the last growth or overflow.
      hysteresis: int32 [], overflows left before the scale backs off.
    """

    scale: tf.Tensor
    good_steps: tf.Tensor
    hysteresis: tf.Tensor


@dataclasses.dataclass(frozen=True)
class DynamicLossScale:
    """Grows after `growth_interval` clean steps, backs off on inf or NaN.

    Attributes:
      initial_scale: first scale, from `min_scale` to `max_scale`.
      growth_interval: growth comes with exactly this many clean steps in a row.
      growth_factor: growth multiplies the scale by this; above 1.
      backoff_factor: an overflow multiplies it by this; between 0 and 1.
      min_scale: floor. Default 2^-14, float16's smallest normal number: below 1
        a scale only serves gradients beyond 65504, and at 2^-14 those may reach
        2^30, where training is lost anyway.
      max_scale: cap. Default 2^24: then gradients down to 2^-48 survive in
        float16 (whose smallest number is 2^-24), and smaller ones do not move
        float32 weights. A step at a scale without bound would be skipped.
      hysteresis: the scale backs off at this overflow and at each later one,
        until growth restores the count. 1: at every overflow.
      clamp_growth: a growth past `max_scale` gives `max_scale`; if False, it
        leaves the scale alone.
      wait_after_overflow: clean steps that do not count, at the start and after
        an overflow.
      wait_after_growth: clean steps that do not count after a growth.

    Raises:
      ValueError: a constant breaks its law; the message names it.
    """

    initial_scale: float = 2.0**15
    growth_interval: int = 2000
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    min_scale: float = 2.0**-14
    max_scale: float = 2.0**24
    hysteresis: int = 1
    clamp_growth: bool = True
    wait_after_overflow: int = 0
    wait_after_growth: int = 0

    def __post_init__(self) -> None:
        for name in ("initial_scale", "min_scale", "max_scale"):
            _check_scale(name, getattr(self, name))
        _check_float("growth_factor", self.growth_factor)
        _check_float("backoff_factor", self.backoff_factor)
        _check_integer("growth_interval", self.growth_interval, 1)
        _check_integer("hysteresis", self.hysteresis, 1)
        _check_integer("wait_after_overflow", self.wait_after_overflow, 0)
        _check_integer("wait_after_growth", self.wait_after_growth, 0)
        if self.growth_factor <= 1:
            _refuse("growth_factor", self.growth_factor, "be greater than 1")
        if not 0 < self.backoff_factor < 1:
            _refuse("backoff_factor", self.backoff_factor, "be between 0 and 1")
        if self.min_scale > self.max_scale:
            law = f"be at most `max_scale` ({self.max_scale})"
            _refuse("min_scale", self.min_scale, law)
        if not self.min_scale <= self.initial_scale <= self.max_scale:
            law = (
                f"be from `min_scale` ({self.min_scale}) to `max_scale` "
                f"({self.max_scale})"
            )
            _refuse("initial_scale", self.initial_scale, law)

    def init(self) -> LossScaleState:
        """Returns the state before the first step."""
        return LossScaleState(
            scale=tf.constant(self.initial_scale, tf.float32),
            good_steps=tf.constant(-self.wait_after_overflow, tf.int32),
            hysteresis=tf.constant(self.hysteresis, tf.int32),
        )

    def next_state(self, state: LossScaleState, grads_finite: Any) -> LossScaleState:
        """Returns the state after a step.

        Args:
          state: the state the step used.
          grads_finite: bool [], whether all its gradients were finite.

        Returns:
          The next state, by selects alone: no value is read by the host.
        """
        finite = tf.convert_to_tensor(grads_finite, tf.bool)
        good_steps = state.good_steps + 1
        # >=, not ==: an interval lowered in mid-run still lets the scale grow.
        grows = tf.logical_and(finite, good_steps >= self.growth_interval)

        grown = state.scale * self.growth_factor
        at_cap = self.max_scale if self.clamp_growth else state.scale
        grown = tf.where(grown <= self.max_scale, grown, at_cap)  # inf is not <=
        tolerance = tf.maximum(state.hysteresis - 1, 0)
        backed_off = tf.where(
            tolerance > 0,
            state.scale,
            tf.maximum(state.scale * self.backoff_factor, self.min_scale),
        )
        kept = tf.where(grows, grown, state.scale)
        return LossScaleState(
            scale=tf.where(finite, kept, backed_off),
            good_steps=tf.where(
                finite,
                tf.where(grows, -self.wait_after_growth, good_steps),
                -self.wait_after_overflow,
            ),
            hysteresis=tf.where(
                finite,
                tf.where(grows, self.hysteresis, state.hysteresis),
                tolerance,
            ),
        )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> DynamicLossScale:
        """Returns the rule of another system, with that system's defaults.

        Args:
          name: one of `PRESETS`.
          **overrides: arguments of `DynamicLossScale`.

        Raises:
          ValueError: unknown name, or an unlawful override.
        """
        if name not in PRESETS:
            raise ValueError(f"`name` ({name}) must be one of: {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})


_UNBOUNDED = {"min_scale": SMALLEST, "max_scale": LARGEST, "clamp_growth": False}

# Each system's own rule and defaults. One edge is not copied, because it destroys
# weights: where a system lets the scale become 0 or inf, it stays at the
# smallest or largest float32 it reached.
PRESETS: dict[str, dict[str, Any]] = {
    # Keras 3 LossScaleOptimizer: no bounds.
    "keras": {**_UNBOUNDED},
    # tf.keras LossScaleOptimizer: floor 1; a growth to inf is refused.
    "tf_keras": {**_UNBOUNDED, "min_scale": 1.0},
    # torch.amp.GradScaler: no floor; a growth to inf is refused.
    "torch": {**_UNBOUNDED, "initial_scale": 2.0**16},
    # apex.amp LossScaler: no floor, cap 2^24.
    "apex": {"min_scale": SMALLEST, "initial_scale": 2.0**16},
    # Megatron-LM DynamicGradScaler with its command line's defaults.
    "megatron": {
        **_UNBOUNDED,
        "initial_scale": 2.0**32,
        "growth_interval": 1000,
        "min_scale": 1.0,
        "hysteresis": 2,
    },
    # DeepSpeed DynamicLossScaler since 0.17.1, with its configuration's defaults.
    "deepspeed": {
        **_UNBOUNDED,
        "initial_scale": 2.0**16,
        "growth_interval": 1000,
        "min_scale": 1.0,
        "hysteresis": 2,
        "wait_after_overflow": 1,
    },
    # jmp.DynamicLossScale: floor 1; a growth to inf is refused.
    "jmp": {**_UNBOUNDED, "min_scale": 1.0},
    # flax.training.dynamic_scale.DynamicScale: a growth is clamped to float32's
    # largest number, and comes with clean step N + 1.
    "flax": {
        **_UNBOUNDED,
        "initial_scale": 2.0**16,
        "clamp_growth": True,
        "wait_after_overflow": 1,
        "wait_after_growth": 1,
    },
    # fairseq DynamicLossScaler with tolerance 0. It stops the program rather than
    # reach 1e-4: for scales that are powers of two, the floor is 2^-13.
    "fairseq": {**_UNBOUNDED, "min_scale": 2.0**-13},
}


@dataclasses.dataclass(frozen=True)
class StaticLossScale:
    """A scale that never changes; a step that overflows is still skipped.

    Attributes:
      scale: positive and finite.
    """

    scale: float

    def __post_init__(self) -> None:
        _check_scale("scale", self.scale)

    @property
    def min_scale(self) -> float:
        """The floor: the scale itself."""
        return self.scale

    def init(self) -> LossScaleState:
        """Returns the state of every step."""
        return LossScaleState(
            scale=tf.constant(self.scale, tf.float32),
            good_steps=tf.constant(0),
            hysteresis=tf.constant(1),
        )

    def next_state(self, state: LossScaleState, grads_finite: Any) -> LossScaleState:
        """Returns `state`, whatever `grads_finite` is."""
        del grads_finite
        return state


class NoLossScale(StaticLossScale):
    """A scale of 1: for float32 and bfloat16, whose exponents are as wide."""

    def __init__(self) -> None:
        super().__init__(1.0)


LossScale = DynamicLossScale | StaticLossScale | NoLossScale


def _refuse(name: str, value: Any, law: str) -> None:
    raise ValueError(f"`{name}` ({value}) must {law}.")


def _check_float(name: str, value: Any) -> None:
    """Refuses what is not a number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        _refuse(name, value, "be a number")
    if not math.isfinite(value) or abs(value) > LARGEST:
        _refuse(name, value, "be finite in float32")


def _check_scale(name: str, value: Any) -> None:
    _check_float(name, value)
    if value < SMALLEST:
        _refuse(name, value, "be at least 2^-126, float32's smallest normal number")


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        _refuse(name, value, "be an integer")
    if value < least:
        _refuse(name, value, f"be at least {least}")
    if value > 2**31 - 2:
        _refuse(name, value, "fit into 32 bits")
