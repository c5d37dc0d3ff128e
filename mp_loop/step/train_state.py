"""TrainState: the only owner of what training changes.

What a checkpoint holds is exactly this object; what is not in it does not
survive a restart.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from mp_loop.step import loss_scale, metrics

COUNTERS = (
    "step",
    "applied_steps",
    "skipped_steps",
    "forward_overflows",
    "stuck_steps",
    "overflows",
    "logged_overflows",
    "rollbacks",
    "skip_reasons",
)
# What states of earlier versions did not have, and start without.
LATER = ("skip_reasons",)


class TrainState(tf.Module):
    """Every variable of a training, in order of the step that changes them.

    Attributes:
      master_weights: float32 variables that the optimizer updates.
      working_weights: the variables that forward and backward read, one for
        each master: a 16-bit copy, or the master itself where it is shared.
      other_weights: weights without gradient (batch-norm statistics, frozen
        layers), of the model and then the twin's own copies of them.
      seeds: states of random generators (dropout). They move on in a skip.
      slots: the optimizer's variables.
      loss_scale: variables for the fields of the loss-scale state, integers as
        int64: TensorFlow keeps int32 variables on the host, where XLA on a GPU does
        not reach them.
      step: int64 [], batches seen.
      applied_steps: int64 [], updates made.
      skipped_steps: int64 [], updates skipped: `step - applied_steps`.
      forward_overflows: int64 [], steps whose loss, or batch statistics, were not
        finite; the other skips are overflows of the backward pass.
      stuck_steps: int64 [], skips in a row up to now.
      overflows: int64 [number of masters], for each master the skips in which its
        own gradient was not finite: who overflowed. A skip that is counted for no
        master had a loss or a gradient norm that was not finite.
      logged_overflows: likewise, `overflows` as it was when last logged.
      rollbacks: int64 [], how often the training went back to a checkpoint.
      skip_reasons: int64 [5], skips by `metrics.SKIP_REASONS` after the first.
    """

    def __init__(
        self,
        master_weights: Sequence[tf.Variable],
        working_weights: Sequence[tf.Variable],
        other_weights: Sequence[tf.Variable],
        seeds: Sequence[tf.Variable],
        slots: Sequence[tf.Variable],
        loss_scale: tuple[tf.Tensor, ...] = (),
    ):
        """Takes variables that exist, and makes the counters and the scale's.

        Args:
          master_weights: float32.
          working_weights: as many as masters.
          other_weights: any dtype.
          seeds: integers.
          slots: any dtype.
          loss_scale: NamedTuple of scalars, the first state of the rule.
        """
        super().__init__(name="train_state")
        self.master_weights = list(master_weights)
        self.working_weights = list(working_weights)
        self.other_weights = list(other_weights)
        self.seeds = list(seeds)
        self.slots = list(slots)
        self._loss_scale_dtypes = [value.dtype for value in loss_scale]
        self.loss_scale = [
            tf.Variable(
                tf.cast(value, tf.int64) if value.dtype.is_integer else value,
                trainable=False,
            )
            for value in loss_scale
        ]
        self._make_loss_scale = type(loss_scale)
        self.step = _counter("step")
        self.applied_steps = _counter("applied_steps")
        self.skipped_steps = _counter("skipped_steps")
        self.forward_overflows = _counter("forward_overflows")
        self.stuck_steps = _counter("stuck_steps")
        self.overflows = _counter("overflows", [len(self.master_weights)])
        self.rollbacks = _counter("rollbacks")
        self.skip_reasons = _counter("skip_reasons", [len(metrics.SKIP_REASONS) - 1])
        self.logged_overflows = _counter("logged_overflows", [len(self.master_weights)])

    def named(self) -> dict[str, tf.Variable]:
        """Returns every variable once, under the first of its names.

        Names are `master_weights/0`, ..., `loss_scale/scale`, ..., `step`: what a
        checkpoint calls them.
        """
        lists = ("master_weights", "working_weights", "other_weights", "seeds", "slots")
        named = {
            f"{name}/{i}": variable
            for name in lists
            for i, variable in enumerate(getattr(self, name))
        }
        fields = getattr(self._make_loss_scale, "_fields", ())
        for field, variable in zip(fields, self.loss_scale, strict=True):
            named[f"loss_scale/{field}"] = variable
        named |= {name: getattr(self, name) for name in COUNTERS}
        first = {id(variable): name for name, variable in reversed(named.items())}
        return {name: v for name, v in named.items() if first[id(v)] == name}

    def read_loss_scale(self) -> loss_scale.LossScaleState:
        """Returns the loss-scale state as the rule's NamedTuple of tensors."""
        fields = zip(self.loss_scale, self._loss_scale_dtypes, strict=True)
        return self._make_loss_scale(
            *(tf.cast(variable.read_value(), dtype) for variable, dtype in fields)
        )

    def write_loss_scale(self, state: loss_scale.LossScaleState) -> None:
        """Stores what the rule's `next_state` returned."""
        for variable, value in zip(self.loss_scale, state, strict=True):
            variable.assign(tf.cast(value, variable.dtype))

    def continue_from(self, before: TrainState) -> None:
        """Takes over from a training of other variables of the same model.

        That is the loss scale, the seeds and all counts but those of single masters.
        """
        names = ("loss_scale", "seeds")
        pairs = [(getattr(self, name), getattr(before, name)) for name in names]
        for ours, theirs in pairs:
            for variable, value in zip(ours, theirs, strict=True):
                variable.assign(value)
        for name in set(COUNTERS) - {"overflows", "logged_overflows"}:
            getattr(self, name).assign(getattr(before, name))

    def count(
        self,
        applied: tf.Tensor,
        forward_finite: tf.Tensor,
        grads_finite: tf.Tensor | None = None,
        skip_reason: tf.Tensor | None = None,
    ) -> None:
        """Counts one step.

        Args:
          applied: bool [], whether its update was made.
          forward_finite: bool [], whether its loss was finite.
          grads_finite: bool [number of masters], whether each gradient was; None
            where nobody looked.
          skip_reason: int32 [], the place in `metrics.SKIP_REASONS`; or None.
        """
        one = tf.cast(applied, tf.int64)
        with tf.control_dependencies([applied]):  # not in a step that raised an error
            self.step.assign_add(1)
        self.applied_steps.assign_add(one)
        self.skipped_steps.assign_add(1 - one)
        self.forward_overflows.assign_add(tf.cast(~forward_finite, tf.int64))
        self.stuck_steps.assign((self.stuck_steps + 1) * (1 - one))
        if grads_finite is not None:
            self.overflows.assign_add(tf.cast(~grads_finite, tf.int64))
        if skip_reason is not None:
            reasons = len(metrics.SKIP_REASONS) - 1
            self.skip_reasons.assign_add(
                tf.one_hot(skip_reason - 1, reasons, dtype=tf.int64)
            )


def _counter(name: str, shape: Sequence[int] = ()) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, tf.int64), trainable=False, name=name)
