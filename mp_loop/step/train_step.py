"""One training step with handwritten mixed precision.

    step = TrainStep(model, keras.optimizers.Adam(1e-3), loss)
    metrics = step(inputs, labels)           # {"loss": ..., "grads_finite": ...}
    metrics = step.run(iterator, steps)      # many steps in one call

`model` is an ordinary float32 Keras model. Its variables are the master
weights: they are what is updated, and `model.save` at any moment saves the
result. Forward and backward run on its twin (`mp_loop.precision.twins`).

One step, in order:

    loss    = loss(labels, twin(inputs)) + regularizers(masters)    # float32
    scaled_grads = gradient(loss * scale, working_weights)          # 16 bits
    grads   = float32(scaled_grads) / scale          # summed over micro-batches
    finite  = all(isfinite(grads))   # and the loss, the rate, and what is written
    masters, slots, statistics = updated if finite else as they were
    working_weights = 16 bits(masters)
    scale   = rule.next_state(scale, finite)

Source: Micikevicius et al. 2017 (arXiv 1710.03740), sections 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from mp_loop.config import choices
from mp_loop.distributed import nests, replicas
from mp_loop.precision import recomputation
from mp_loop.step import (
    arguments,
    arithmetic,
    batch_metrics,
    gradients,
    loss_scale,
    losses,
    metrics,
    placement,
    preparing,
    protocol,
    scaled_gradients,
    updates,
    variables,
)


class TrainStep:
    """Trains a float32 Keras model with its forward and backward in 16 bits.

    Attributes:
      model: the user's float32 model, the masters.
      twin: the model that computes; `model` itself in float32. Its outputs may be of
        16 bits, which the loss casts.
      optimizer: the Keras optimizer whose slots and rates are used.
      rule: the loss-scale rule.
      gradients: forward and backward pass, without what makes a step of them.
      prepare: makes the model's inputs of what the step is given.
      state: `train_state.TrainState`, what a checkpoint must hold.
      SKIP_REASONS: why a step can be skipped; the first is that it was not.

    Args:
      model: a built functional or Sequential float32 Keras model. Any model whatever,
        if you pass its `twin`.
      optimizer: any Keras optimizer but LossScaleOptimizer, or its identifier.
      loss: Keras identifier, `keras.losses.Loss`, or function of (labels, outputs) that
        returns losses to be averaged; dict or list of such, by output; None: what
        layers add is the loss. A function gets integer labels as they are, or as
        float32 if it cannot compute with integers.
      precision: "float16", "bfloat16" or "float32".
      loss_scale: the rule; default: `DynamicLossScale()` (float16) or `NoLossScale()`.
      loss_weights: for the loss of each output: number, or dict or list as `loss`.
      metrics: what else is told of each batch: Keras identifier, `keras.metrics.Metric`
        or function of (labels, outputs), a list of such, or a dict of these by output.
        Sample weights are used as by the loss.
      twin: a model of your own that computes in 16 bits, with the layers and weights of
        `model`: in the same places of a graph, in equal attributes or by equal names.
      float32_layers: regular expression; layers whose name it finds stay in float32.
      clip_norm: gradients are clipped to this global norm; 0: not at all.
      accumulate_steps: micro-batches that a batch is split into. One loss scale, one
        check and one update serve them all.
      jit_compile: compiles the step with XLA, unless the model needs what XLA cannot
        reach; under a strategy what is before and after the all-reduce. See
        `step.placement`.
      keras_arithmetic: computes every bit as Keras' mixed policy and LossScaleOptimizer
        do, for comparison: 16-bit softmax and bias sums, Keras' own update, and
        batch-norm statistics that a skip moves.
      recompute: computes activations again in the backward pass instead of keeping
        them; see `precision.recomputation`.
      all_reduce_dtype: under a `tf.distribute` strategy, whose scope both `model` and
        the step must be made in: how gradients of float16 weights travel between
        replicas, "float32" or "float16".
      prepare: what the step does to its inputs before the model has them, so that they
        travel as they are: uint8 pixels made float32, for example.

    Raises:
      ValueError: an argument is out of range, or the model cannot be converted; the
        message names it.
    """

    SKIP_REASONS = metrics.SKIP_REASONS

    def __init__(
        self,
        model: keras.Model,
        optimizer: str | keras.optimizers.Optimizer,
        loss: losses.LossesLike,
        precision: str = "float16",
        loss_scale: loss_scale.LossScale | None = None,
        *,
        loss_weights: losses.LossWeights = None,
        metrics: batch_metrics.MetricsLike = None,
        twin: keras.Model | None = None,
        float32_layers: str = "",
        clip_norm: float = 0.0,
        accumulate_steps: int = 1,
        jit_compile: bool = False,
        keras_arithmetic: bool = False,
        recompute: bool = False,
        all_reduce_dtype: str = "float32",
        prepare: preparing.Prepare | None = None,
    ):
        """Makes the twin, the slots and the state."""
        arguments.check(model, precision, clip_norm, accumulate_steps)
        optimizer = keras.optimizers.get(optimizer)
        self._replicas = replicas.Replicas(all_reduce_dtype)
        self._replicas.check_supported(
            model, accumulate_steps, keras_arithmetic=keras_arithmetic
        )
        self._arithmetic = arithmetic.make(keras_arithmetic, float32_layers)
        made = None
        if twin is None and precision in choices.HALF_PRECISIONS:
            twin = made = self._arithmetic.twin(model, precision)
        self.model = model
        self.twin = model if twin is None else twin
        self.optimizer = optimizer
        self.rule = loss_scale or arithmetic.default_rule(precision, model, made)
        self._clip_norm = clip_norm
        self._variables = variables.of_step(model, self.twin)
        self._replicas.check_scope("optimizer", optimizer.variables[0])
        for master in self._variables.masters:
            self._replicas.check_scope("model", master)
        self._update = self._arithmetic.update(optimizer, self._variables.masters)
        self.state = self._variables.state(self._update.slots, self.rule.init())
        self.reload()
        recomputed = recomputation.Recomputed(self.twin) if recompute else None
        names = getattr(model, "output_names", None)
        measure = batch_metrics.BatchMetrics(metrics, names)
        self._dtypes = measure.dtypes
        self.gradients = scaled_gradients.ScaledGradients(
            self.twin,
            losses.of(loss, loss_weights, names),
            self._variables,
            self._arithmetic,
            accumulate_steps,
            recomputed,
            measure,
        )
        self.prepare = preparing.or_unchanged(prepare)
        self._make_functions(model, jit_compile)

    def _make_functions(self, model: keras.Model, jit_compile: bool) -> None:
        # What replicas exchange, XLA does not compile.
        self._in_parts = in_parts = jit_compile and self._replicas.strategy is not None
        name = "The forward and backward pass"
        self._first_half = placement.part(self._of_batch, model, in_parts, name)
        self._second_half = placement.part(self._of_sums, model, in_parts, "The update")
        self._step = placement.function(
            self._of_prepared, model, jit_compile and not in_parts, self._prepared
        )
        self._run = tf.function(self._many_steps, autograph=False)

    @property
    def master_weights(self) -> Sequence[tf.Variable]:
        """The float32 variables that are trained: the model's own."""
        return self.state.master_weights

    @property
    def working_weights(self) -> Sequence[tf.Variable]:
        """What forward and backward read: 16-bit copies, or shared masters."""
        return self.state.working_weights

    @property
    def loss_scale(self) -> tf.Tensor:
        """The loss scale of the next step, float32 []."""
        return self.state.read_loss_scale().scale

    @property
    def min_scale(self) -> float:
        """The smallest scale that an overflow can lead to."""
        return self.rule.min_scale

    def __call__(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> metrics.Metrics:
        """Takes one step on one batch.

        Args:
          inputs: what `prepare`, or else the model, takes, batch first.
          labels: what the loss takes, batch first.
          sample_weight: weights for the loss, float32 [batch], or None.

        Returns:
          Scalars: `loss` (float32, with regularizers, unscaled), `grads_finite`
          (bool: whether the update was made), `forward_finite` (bool: whether the loss
          and the statistics that the forward pass moved were finite; if so, a skip is
          the backward pass's overflow), `loss_scale` (float32, the one this step used),
          `grad_norm` (float32, before clipping), `learning_rate` (float32, the one this
          update used or would have), `skip_reason` (int32, place in `SKIP_REASONS`),
          and the `metrics` that were asked for, by name (float32, of this batch alone).

        Raises:
          tf.errors.InvalidArgumentError: labels are not the class numbers that one
            of Keras' losses needs; nothing has changed. What a loss function of your
            own raises comes in mid-step (on a processor `tf.gather` does, for a label
            that is too large; GPUs and XLA do not check): weights, slots, scale and
            counters are as before, statistics of batch norm and seeds may have moved.
        """
        return self._step(inputs, labels, sample_weight)

    def run(self, iterator: nests.Batches, steps: int) -> metrics.Metrics:
        """Takes many steps in one call, without returning to Python.

        Args:
          iterator: of a `tf.data.Dataset` of (inputs, labels[, sample_weight])
            with at least `steps` batches left.
          steps: how many; another number does not retrace.

        Returns:
          The metrics of `__call__` and `metrics.FETCHES`, each of shape [steps].

        Raises:
          tf.errors.OutOfRangeError: the iterator ended; the steps on the batches that
            it had were taken.
        """
        with metrics.told_of_the_end(steps, self.state.step):
            return self._run(iterator, tf.convert_to_tensor(steps, tf.int32))

    def reload(self) -> None:
        """Copies masters to working weights after the masters were set by hand."""
        self._variables.recast_all()

    def continue_from(self, before: TrainStep) -> None:
        """Takes over from a step that trained other layers of the same model."""
        self.state.continue_from(before.state)

    def back_off(self) -> None:
        """Lowers the loss scale as an overflow does."""
        scale_state = self.state.read_loss_scale()
        self.state.write_loss_scale(self.rule.next_state(scale_state, False))

    def export(self) -> keras.Model:
        """Returns the trained float32 model."""
        return self.model

    def graph(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> tf.Graph:
        """Returns the traced step, for TensorBoard; `tf.TensorSpec`s will do."""
        return self._step.get_concrete_function(inputs, labels, sample_weight).graph

    def loss(
        self, labels: nests.Nest, outputs: nests.Nest, sample_weight: nests.Nest = None
    ) -> tf.Tensor:
        """Returns the mean loss of a batch, float32 [], without regularizers."""
        return self.gradients.loss(labels, outputs, sample_weight)

    def trace(
        self,
        inputs: nests.Nest,
        labels: nests.Nest,
        sample_weight: nests.Nest = None,
        recompute: bool = True,
    ) -> protocol.Trace:
        """Takes one step; for use inside a `tf.function`.

        Args:
          inputs: what the model takes: `prepare` was called.
          labels: as for `__call__`.
          sample_weight: as for `__call__`.
          recompute: False: keeps activations, so that each layer is called once.

        Raises:
          ValueError: no gradient reaches any weight.
        """
        means, scaled_grads, before, outputs = self._first_half(
            (inputs, labels, sample_weight), recompute
        )
        means, scaled_grads = self._replicas.unite(
            means,
            scaled_grads,
            self._variables.from_float16,
            [variable for variable, _ in self._variables.with_variables(before)],
        )
        finite = tf.math.is_finite(means["loss"])
        applied = self._second_half(scaled_grads, finite, before)
        return protocol.Trace({**means, **applied}, scaled_grads, outputs)

    def apply(
        self,
        scaled_grads: gradients.Gradients,
        forward_finite: tf.Tensor | bool = True,
        written: Sequence[tuple[tf.Variable, tf.Tensor]] = (),
    ) -> metrics.Metrics:
        """Does the second half of a step: check, unscale, update, next scale.

        For gradients that were made elsewhere; call it inside a `tf.function`.

        Args:
          scaled_grads: one for each master, float32 or 16 bits; None where there is
            none. They are of a loss that was multiplied by the current loss scale.
          forward_finite: bool [], whether that loss was finite.
          written: variables that the forward pass wrote to, each with what it held
            before and holds again after a skip.

        Returns:
          The metrics of `__call__` but `loss`.
        """
        scale, scale_state = self._scale(), self.state.read_loss_scale()
        rate = self._update.learning_rate
        statistics, before = [v for v, _ in written], [old for _, old in written]
        forward_finite = forward_finite & variables.all_finite(statistics)
        halves = gradients.half_squares(scaled_grads)
        norm = gradients.global_norm(halves) / scale
        told = gradients.told_by_squares(
            self._variables.from_float16, self._needs_norm, self.rule.min_scale
        )
        bounds = gradients.bounds(scaled_grads, halves, told)
        grads_finite = gradients.each_finite(halves, bounds, scale, told)
        causes = self._arithmetic.causes(
            {
                "forward": ~forward_finite,
                "gradient": ~tf.reduce_all(grads_finite),
                "norm": ~tf.math.is_finite(norm) & self._needs_norm,
                "rate": ~tf.math.is_finite(rate),
            }
        )
        applied = self._update(
            scaled_grads,
            scale,
            ~tf.reduce_any(list(causes.values())),
            tf.reduce_max(bounds),
            gradients.clip_factor(norm, self._clip_norm),
        )
        updates.select(applied, statistics, before)
        self._variables.recast()
        reason = metrics.skip_reason(causes, applied)
        self.state.count(applied, forward_finite, grads_finite, reason)
        self.state.write_loss_scale(self.rule.next_state(scale_state, applied))
        return {
            "grads_finite": applied,
            "forward_finite": forward_finite,
            "loss_scale": scale,
            "grad_norm": norm,
            "learning_rate": rate,
            "skip_reason": reason,
        }

    @property
    def _needs_norm(self) -> bool:
        """Whether an infinite norm of finite gradients would do harm."""
        return bool(self._clip_norm or self._update.needs_norm)

    def _scale(self) -> tf.Tensor:
        """The loss scale of this step, float32 []; a constant costs nothing."""
        if isinstance(self.rule, loss_scale.NoLossScale):
            return tf.constant(1.0)
        return self.loss_scale

    def _of_batch(self, batch: gradients.Batch, recompute: bool) -> tuple:
        """What one replica computes alone: means, gradients, what it wrote, outputs."""
        before = self._variables.remember()
        share = self._replicas.share(self._scale())
        with self._replicas.own_seeds(self.state.seeds):
            means, scaled_grads, outputs = self.gradients(batch, share, recompute)
        before = self._arithmetic.restored(self._variables, before)
        return means, scaled_grads, before, None if self._in_parts else outputs

    def _of_sums(
        self,
        scaled_grads: gradients.Gradients,
        finite: tf.Tensor,
        before: variables.Remembered,
    ) -> metrics.Metrics:
        """What every replica computes of the same numbers."""
        return self.apply(scaled_grads, finite, self._variables.with_variables(before))

    def _of_prepared(self, *batch: nests.Nest) -> metrics.Metrics:
        return self.trace(*batch).metrics

    def _prepared(self, step: Callable[..., nests.Nest]) -> Callable[..., nests.Nest]:
        check = self.gradients.check_labels  # here, because XLA drops assertions
        return self._replicas.each(preparing.before(step, self.prepare, check))

    def _many_steps(self, iterator: nests.Batches, steps: tf.Tensor) -> metrics.Metrics:
        dtypes = metrics.OF_RUN | self._dtypes
        return metrics.stack_steps(metrics.on_next(self, iterator), dtypes, steps)
