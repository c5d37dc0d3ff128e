"""The loss-scale rule: a frozen value and a pure function.

    rule = DynamicLossScale(initial_scale=2.0**15, growth_interval=2000)
    state = rule.init()
    state = rule.next_state(state, grads_finite)  # eager, tf.function or XLA

Gradients too small for 16 bits are lost as zeros. Multiplying the loss by a
scale lifts all of them at once; dividing the float32 gradients by it afterwards
changes nothing else. The dynamic rule rides just below the largest scale that
does not overflow:

    a clean step:   good_steps += 1
                    at growth_interval: scale *= growth_factor, good_steps = 0
    an overflow:    scale *= backoff_factor, good_steps = 0
    always:         min_scale <= scale <= max_scale

Source: Micikevicius et al. 2017, "Mixed Precision Training" (arXiv 1710.03740),
section 3.2.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import NamedTuple, NoReturn

import tensorflow as tf

from mp_loop.config import limits, sections
from mp_loop.step import presets


class LossScaleState(NamedTuple):
    """What changes from step to step, and what a checkpoint holds.

    Attributes:
      scale: float32 [], what the next loss is multiplied by.
      good_steps: int32 [], consecutive clean steps that count towards growth;
        below zero while a preset waits before it counts.
      hysteresis: int32 [], which overflow from now on lowers the scale: 1 is
        the next one.
    """

    scale: tf.Tensor
    good_steps: tf.Tensor
    hysteresis: tf.Tensor


@dataclasses.dataclass(frozen=True)
class DynamicLossScale:
    """Grows after `growth_interval` clean steps in a row, backs off on overflow.

    An overflow is a step whose gradients are not all finite. All constants are
    dimensionless or counted in steps; the arithmetic is float32.

    Attributes:
      initial_scale: the first scale, from `min_scale` to `max_scale`.
      growth_interval: the scale grows on exactly this many-th clean step in a row.
      growth_factor: what growth multiplies the scale by; greater than 1.
      backoff_factor: what an overflow multiplies it by; between 0 and 1.
      min_scale: the floor. Default 2^-14: scaled gradients then fit into float16
        (at most 65504) up to 2^30, so a model that still overflows has diverged,
        which a smaller scale would only hide. It is also float16's smallest
        normal number: the scale can be cast to float16 without losing bits.
      max_scale: the cap. Default 2^24, as in Apex: gradients down to 2^-48 then
        survive in float16 (smallest number 2^-24), and float32 weights, with
        their 24 bits, do not feel smaller ones. Without a cap, a model that
        never overflows raises its scale until the loss itself does.
      hysteresis: the scale backs off on this overflow and on each later one,
        until growth starts the count again. 1: on every overflow.
      clamp_growth: growth past `max_scale` gives `max_scale`; if False, it leaves
        the scale as it was.
      clamp_backoff: backing off past `min_scale` gives `min_scale`; if False, it
        leaves the scale as it was.
      wait_after_overflow: clean steps that do not count at the start and after
        an overflow.
      wait_after_growth: clean steps that do not count after a growth.

    Raises:
      ValueError: a constant is out of range; one line names it and what it must be.
    """

    initial_scale: float = 2.0**15
    growth_interval: int = 2000
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    min_scale: float = 2.0**-14
    max_scale: float = 2.0**24
    hysteresis: int = 1
    clamp_growth: bool = True
    clamp_backoff: bool = True
    wait_after_overflow: int = 0
    wait_after_growth: int = 0

    def __post_init__(self) -> None:
        checked = {"float": _float, "int": _integer, "bool": _bool}
        for field in dataclasses.fields(self):
            value = checked[field.type](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)  # frozen from here on
        as_float32 = tf.float32.as_numpy_dtype
        if as_float32(self.growth_factor) <= 1:
            _refuse("growth_factor", self.growth_factor, "be greater than 1 in float32")
        if as_float32(self.backoff_factor) >= 1:
            _refuse("backoff_factor", self.backoff_factor, "be less than 1 in float32")
        for name, least in (
            ("growth_interval", 1),
            ("hysteresis", 1),
            ("wait_after_overflow", 0),
            ("wait_after_growth", 0),
        ):
            if getattr(self, name) < least:
                _refuse(name, getattr(self, name), f"be at least {least}")
        if self.max_scale < self.min_scale:
            least = f"`min_scale` ({self.min_scale})"
            _refuse("max_scale", self.max_scale, f"be at least {least}")
        if not self.min_scale <= self.initial_scale <= self.max_scale:
            bounds = f"({self.min_scale}) to `max_scale` ({self.max_scale})"
            _refuse(
                "initial_scale", self.initial_scale, f"be from `min_scale` {bounds}"
            )

    def init(self) -> LossScaleState:
        """Returns the state before the first step."""
        return LossScaleState(
            scale=tf.constant(self.initial_scale, tf.float32),
            good_steps=tf.constant(-self.wait_after_overflow, tf.int32),
            hysteresis=tf.constant(self.hysteresis, tf.int32),
        )

    def next_state(
        self, state: LossScaleState, grads_finite: tf.Tensor | bool
    ) -> LossScaleState:
        """Returns the state after a step; pure, and made of selects alone.

        Args:
          state: the state whose scale the step used.
          grads_finite: bool [], whether all gradients of the step were finite.

        Returns:
          The next state. Its scale is from `min_scale` to `max_scale` whatever
          `state` holds, a scale of 0, inf or NaN included.
        """
        finite = tf.convert_to_tensor(grads_finite, tf.bool)
        good_steps = state.good_steps + 1
        # >=, not ==: an interval lowered in mid-run may already lie behind.
        grows = finite & (good_steps >= self.growth_interval)
        backs_off = ~finite & (state.hysteresis <= 1)

        scale = tf.where(grows, self._grown(state.scale), state.scale)
        scale = tf.where(backs_off, self._backed_off(state.scale), scale)
        since_growth = tf.where(grows, -self.wait_after_growth, good_steps)
        fewer = tf.clip_by_value(state.hysteresis - 1, 1, self.hysteresis)
        hysteresis = tf.where(finite, state.hysteresis, fewer)
        return LossScaleState(
            scale=self._bounded(scale),
            good_steps=tf.where(finite, since_growth, -self.wait_after_overflow),
            hysteresis=tf.where(grows, self.hysteresis, hysteresis),
        )

    def at_floor(self, state: LossScaleState) -> tf.Tensor:
        """Returns bool []: whether no overflow could lower the scale further."""
        return self._bounded(self._backed_off(state.scale)) >= state.scale

    def _grown(self, scale: tf.Tensor) -> tf.Tensor:
        grown = scale * self.growth_factor  # float32; may be inf
        kept = grown if self.clamp_growth else scale
        return tf.where(grown <= self.max_scale, grown, kept)

    def _backed_off(self, scale: tf.Tensor) -> tf.Tensor:
        backed_off = scale * self.backoff_factor  # float32; may be 0
        kept = backed_off if self.clamp_backoff else scale
        return tf.where(backed_off >= self.min_scale, backed_off, kept)

    def _bounded(self, scale: tf.Tensor) -> tf.Tensor:
        # Selects, not tf.maximum, which hands a NaN on: NaN >= floor is false.
        scale = tf.where(scale >= self.min_scale, scale, self.min_scale)
        return tf.where(scale <= self.max_scale, scale, self.max_scale)

    @classmethod
    def preset(cls, name: str, **overrides: float) -> DynamicLossScale:
        """Returns another system's rule, with that system's own constants.

        The scale after every step is that system's, with one exception: an edge
        that destroys weights is not copied. Where a system lets the scale become
        subnormal, 0 or inf, the preset stops at the last normal float32; where
        it stops the program (DeepSpeed and fairseq at their floors), the scale
        stays and `at_floor` says so.

        name        reproduces
        ----        ----------
        keras       Keras 3, optimizers/loss_scale_optimizer.py: no bounds
        tf_keras    tf_keras/mixed_precision/loss_scale_optimizer.py (also
                    tf.compat.v1.mixed_precision.DynamicLossScale): floor 1,
                    growth to inf refused
        torch       torch/amp/grad_scaler.py and aten's _amp_update_scale_: no
                    floor, growth to inf refused
        apex        apex/amp/scaler.py: no floor, cap 2^24
        megatron    megatron/core/optimizer/grad_scaler.py with the command
                    line's constants: floor 1, hysteresis 2 refilled by growth
        deepspeed   deepspeed/runtime/fp16/loss_scaler.py since 0.17.1 with the
                    configuration's constants (consecutive_hysteresis off): as
                    megatron, but the first clean step after an overflow (and of
                    the run) does not count
        jmp         jmp/_src/loss_scale.py: floor 1, growth to inf refused; no
                    initial scale of its own, its documentation's 2^15
        flax        flax/training/dynamic_scale.py: floor 2^-126, cap the largest
                    float32, growth with clean step N + 1
        fairseq     fairseq/optim/dynamic_loss_scaler.py at tolerance 0: a scale
                    of 1e-4 or less is refused

        Args:
          name: one of `choices.PRESETS`.
          **overrides: arguments of `DynamicLossScale` that replace the system's.

        Returns:
          The rule.

        Raises:
          ValueError: unknown name, or an override that is out of range.
        """
        known = presets.PRESETS
        if name not in known:
            raise ValueError(f"`name` ({name}) must be one of: {', '.join(known)}.")
        return cls(**(known[name] | overrides))


@dataclasses.dataclass(frozen=True)
class StaticLossScale:
    """A scale that never changes; a step that overflows is skipped all the same.

    Attributes:
      scale: a positive normal float32.

    Raises:
      ValueError: `scale` is not a positive normal float32.
    """

    scale: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _float("scale", self.scale))

    @property
    def min_scale(self) -> float:
        """The scale itself: it is always at its floor."""
        return self.scale

    def init(self) -> LossScaleState:
        """Returns the one state there is."""
        return LossScaleState(
            scale=tf.constant(self.scale, tf.float32),
            good_steps=tf.constant(0, tf.int32),
            hysteresis=tf.constant(1, tf.int32),
        )

    def next_state(
        self, state: LossScaleState, grads_finite: tf.Tensor | bool
    ) -> LossScaleState:
        """Returns the one state there is, whatever the step brought."""
        del state, grads_finite
        return self.init()

    def at_floor(self, state: LossScaleState) -> tf.Tensor:
        """Returns True, bool []: no overflow could lower the scale."""
        del state
        return tf.constant(True)


@dataclasses.dataclass(frozen=True)
class NoLossScale(StaticLossScale):
    """A scale of 1, for bfloat16 and float32: both reach down to 2^-126."""

    scale: float = dataclasses.field(default=1.0, init=False, repr=False)


LossScale = DynamicLossScale | StaticLossScale


def default(precision: str) -> LossScale:
    """Returns the default rule: only float16 loses gradients at the lower end."""
    return DynamicLossScale() if precision == "float16" else NoLossScale()


def from_settings(scale: sections.Scale, kind: str) -> LossScale:
    """Makes the rule that settings describe.

    Args:
      scale: the settings.
      kind: "dynamic", "static" or "none"; `settings.Config.loss_scale_kind`.
    """
    if kind == "none":
        return NoLossScale()
    if kind == "static":
        return StaticLossScale(scale.initial_scale)
    if scale.scale_preset:
        return DynamicLossScale.preset(scale.scale_preset, **scale.constants)
    return DynamicLossScale(**scale.constants)


def _refuse(name: str, value: object, must: str) -> NoReturn:
    raise ValueError(f"`{name}` ({value}) must {must}.")


def _float(name: str, value: object) -> float:
    """Returns a constant as a Python float, checked."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        _refuse(name, value, "be a number")
    # A normal float32 is never 0, inf or NaN (which is refused here too), and no device
    # flushes it to zero as it may a subnormal number.
    if not limits.SMALLEST <= value <= limits.LARGEST:
        _refuse(
            name, value, f"be a normal float32: {limits.SMALLEST} to {limits.LARGEST}"
        )
    return float(value)


def _integer(name: str, value: object) -> int:
    """Returns a count as a Python int, checked."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        _refuse(name, value, "be an integer")
    if value > tf.int32.max:
        _refuse(name, value, f"be at most {tf.int32.max}")
    return int(value)


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        _refuse(name, value, "be True or False")
    return value
