"""One training step with handwritten mixed precision, and one of evaluation.

    step = TrainStep(model, keras.optimizers.Adam(1e-3), loss)
    metrics = step(inputs, labels)           # {"loss": ..., "grads_finite": ...}
    metrics = step.run(iterator, steps)      # many steps in one call

`model` is an ordinary float32 Keras model. Its variables are the master
weights: they are what is updated, and `model.save` at any moment saves the
result. Forward and backward run on its twin (`mp_loop.precision`).

One step, in order:

    loss    = loss(labels, twin(inputs)) + regularizers(masters)    # float32
    scaled_grads = gradient(loss * scale, working_weights)          # 16 bits
    grads   = float32(scaled_grads) / scale          # summed over micro-batches
    finite  = all(isfinite(grads))        # and the loss, and the norm if clipping
    masters, slots, statistics = updated if finite else as they were
    working_weights = 16 bits(masters)
    scale   = rule.next_state(scale, finite)

Source: Micikevicius et al. 2017 (arXiv 1710.03740), sections 3.1 to 3.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from mp_loop import devices, distribution, updates
from mp_loop import loss_scale as scaling
from mp_loop import precision as precisions
from mp_loop import recompute as recomputation
from mp_loop import state as states

PRECISIONS = (*precisions.HALF_PRECISIONS, "float32")


class TrainStep:
    """Trains a float32 Keras model with its forward and backward in 16 bits.

    Attributes:
      model: the user's float32 model, the masters.
      twin: the model that computes; `model` itself in float32.
      optimizer: the Keras optimizer whose slots and rates are used.
      state: `mp_loop.state.TrainState`, what a checkpoint must hold.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: str | Callable[..., Any],
        precision: str = "float16",
        loss_scale: scaling.LossScale | None = None,
        *,
        twin: keras.Model | None = None,
        float32_layers: str = "",
        clip_norm: float = 0.0,
        accumulate_steps: int = 1,
        jit_compile: bool = False,
        keras_arithmetic: bool = False,
        recompute: bool = False,
        all_reduce_dtype: str = "float32",
    ):
        """Makes the twin, the slots and the state.

        Args:
          model: a built functional or Sequential float32 Keras model. Any model
            whatever, if you pass its `twin`.
          optimizer: any Keras optimizer but LossScaleOptimizer.
          loss: Keras identifier, `keras.losses.Loss`, or function of (labels,
            outputs) that returns losses to be averaged.
          precision: "float16", "bfloat16" or "float32".
          loss_scale: the rule; default: `DynamicLossScale()` for float16,
            `NoLossScale()` otherwise.
          twin: a model of your own that computes in 16 bits, with the layers and
            weights of `model`: in the same places of a graph, in equal attributes, or
            under equal names.
          float32_layers: regular expression; layers whose name it finds stay in
            float32.
          clip_norm: gradients are clipped to this global norm; 0: not at all.
          accumulate_steps: micro-batches that a batch is split into. One loss
            scale, one check and one update serve them all.
          jit_compile: compiles the step with XLA.
          keras_arithmetic: computes every bit as Keras' mixed policy and
            LossScaleOptimizer do, for comparison: 16-bit softmax and bias sums,
            Keras' own update, and batch-norm statistics that a skip moves.
          recompute: computes activations again in the backward pass instead of
            keeping them; see `mp_loop.recompute`.
          all_reduce_dtype: under a `tf.distribute` strategy, whose scope both
            `model` and the step must be made in: how gradients of float16
            weights travel between replicas, "float32" or "float16".

        Raises:
          ValueError: unlawful argument, by name; or a model that cannot be
            converted.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"`precision` ({precision}) must be one of {PRECISIONS}.")
        if not clip_norm >= 0:
            raise ValueError(f"`clip_norm` ({clip_norm}) must be at least 0.")
        if accumulate_steps < 1:
            raise ValueError(
                f"`accumulate_steps` ({accumulate_steps}) must be at least 1."
            )
        if keras_arithmetic and float32_layers:
            raise ValueError(
                f"`float32_layers` ({float32_layers}) must be empty with "
                "`keras_arithmetic`."
            )
        if loss_scale is None:
            dynamic = precision == "float16"
            loss_scale = (
                scaling.DynamicLossScale() if dynamic else scaling.NoLossScale()
            )
        if twin is None:
            twin = model
            if precision in precisions.HALF_PRECISIONS and keras_arithmetic:
                twin = precisions.keras_twin(model, precision)
            elif precision in precisions.HALF_PRECISIONS:
                twin = precisions.half_precision_twin(
                    model,
                    precision,
                    float32_layers,
                    float32_products=devices.multiplies_slowly(precision),
                )
        self._replicas = distribution.Replicas(all_reduce_dtype)
        self._replicas.refuse(
            model,
            accumulate_steps,
            keras_arithmetic=keras_arithmetic,
            jit_compile=jit_compile,
        )
        self.model = model
        self.twin = twin
        self.optimizer = optimizer
        self.rule = loss_scale
        self._loss = keras.losses.get(loss)
        self._keras_arithmetic = keras_arithmetic
        self._clip_norm = clip_norm
        self._accumulate_steps = accumulate_steps

        self._pairs = precisions.pairs(model, twin)
        working_of = {id(master): working for master, working in self._pairs}
        masters = model.trainable_variables
        workings = [working_of[id(master)] for master in masters]
        self._replicas.check("optimizer", optimizer.variables[0])
        for master in masters:
            self._replicas.check("model", master)
        self._update = updates.make(optimizer, masters, fused=not keras_arithmetic)
        # Copies: where a 16-bit variable follows a float32 one.
        self._copies = [
            (master.value, working.value)
            for master, working in zip(masters, workings, strict=True)
            if working is not master
        ]
        # A copy's regularizer is computed on its master; that of a variable which the
        # twin shares comes with the twin's own losses.
        shared = {id(v) for v in twin.weights}
        self._regularized = [
            master
            for master in masters
            if id(master) not in shared and master.regularizer is not None
        ]
        regularized = {id(master) for master in self._regularized}
        self._from_float16 = [
            working.dtype == "float16" and id(master) not in regularized
            for master, working in zip(masters, workings, strict=True)
        ]
        # What the forward pass may move (batch-norm statistics).
        trained = {id(v) for v in [*masters, *workings]}
        others = _unique([*model.weights, *twin.weights], but=trained)
        weights = trained | {id(v) for v in others}
        seeds = _unique([*model.variables, *twin.variables], but=weights)
        self.state = states.TrainState(
            master_weights=[v.value for v in masters],
            working_weights=[v.value for v in workings],
            other_weights=[v.value for v in others],
            seeds=[v.value for v in seeds],
            slots=self._update.slots,
            loss_scale=self.rule.init(),
        )
        # What the forward pass may write: statistics; rarely a trained weight.
        read = {v.value.ref() for v in twin.weights}
        self._writable = [
            v
            for v in [*self.state.other_weights, *self.state.master_weights]
            if v.ref() in read
        ]
        self.reload()
        self._recomputed = None
        if recompute:
            self._recomputed = recomputation.Recomputed(twin, jit_compile)
        self._step = tf.function(
            self._replicas.each(self._one_step), jit_compile=jit_compile
        )
        self._run = tf.function(self._many_steps)

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

    def __call__(
        self, inputs: Any, labels: Any, sample_weight: Any = None
    ) -> dict[str, tf.Tensor]:
        """Takes one step on one batch.

        Args:
          inputs: what the model takes, batch first.
          labels: what the loss takes, batch first.
          sample_weight: weights for the loss, float32 [batch], or None.

        Returns:
          Scalars: `loss` (float32, with regularizers, unscaled), `grads_finite`
          (bool: whether the update was made), `forward_finite` (bool: whether
          the loss and the statistics that the forward pass moved were finite; if
          so, a skip is the backward pass's overflow),
          `loss_scale` (float32, the one this step used), `grad_norm` (float32,
          before clipping), and `learning_rate` (float32, the one this update
          used or would have).
        """
        return self._step(inputs, labels, sample_weight)

    def run(self, iterator: Iterator[Any], steps: int) -> dict[str, tf.Tensor]:
        """Takes many steps in one call, without returning to Python.

        Args:
          iterator: of a `tf.data.Dataset` of (inputs, labels[, sample_weight])
            with at least `steps` batches left.
          steps: how many; another number does not retrace.

        Returns:
          The metrics of `__call__`, each of shape [steps].
        """
        return self._run(iterator, tf.convert_to_tensor(steps, tf.int32))

    def reload(self) -> None:
        """Copies masters to working weights after the masters were set by hand."""
        for master, working in self._pairs:
            if working is not master:
                working.assign(keras.ops.cast(master, working.dtype))

    def continue_from(self, before: TrainStep) -> None:
        """Takes over from a step that trained other layers of the same model."""
        self.state.continue_from(before.state)

    def export(self) -> keras.Model:
        """Returns the trained float32 model."""
        return self.model

    def graph(self, inputs: Any, labels: Any) -> tf.Graph:
        """Returns the traced step, for TensorBoard; `tf.TensorSpec`s will do."""
        return self._step.get_concrete_function(inputs, labels).graph

    def _many_steps(self, iterator: Any, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        return stack_steps(lambda: self._step(*next(iterator)), METRICS, steps)

    def _one_step(
        self, inputs: Any, labels: Any, sample_weight: Any = None
    ) -> dict[str, tf.Tensor]:
        before = [tf.identity(variable) for variable in self._writable]
        scale = self._scale()
        with self._replicas.own_seeds(self.state.seeds):
            loss, scaled_grads = self._accumulate(
                (inputs, labels, sample_weight), self._replicas.share(scale)
            )
        if scaled_grads and all(grad is None for grad in scaled_grads):
            paths = ", ".join(v.path for v in self.model.trainable_variables)
            raise ValueError(f"No gradient reaches any weight: {paths}.")
        written = [] if self._keras_arithmetic else _written(self._writable)
        moved = [*itertools.compress(zip(self._writable, before, strict=True), written)]
        loss, scaled_grads = self._replicas.unite(
            loss, scaled_grads, self._from_float16, [variable for variable, _ in moved]
        )
        forward_finite = tf.math.is_finite(loss)
        return {"loss": loss, **self.apply(scaled_grads, forward_finite, moved)}

    def forward(self, inputs: Any) -> tuple[Any, list[tf.Tensor]]:
        """Returns the twin's outputs in training, and the losses its layers added."""
        if self._recomputed is None:
            return self.twin(inputs, training=True), self.twin.losses
        outputs, losses = self._recomputed(inputs)
        return outputs, [*losses, *self.twin.losses]  # here those of variables alone

    def apply(
        self,
        scaled_grads: updates.Grads,
        forward_finite: tf.Tensor | bool = True,
        moved: Sequence[tuple[tf.Variable, tf.Tensor]] = (),
    ) -> dict[str, tf.Tensor]:
        """Does the second half of a step: check, unscale, update, next scale.

        For gradients that were made elsewhere; call it inside a `tf.function`.

        Args:
          scaled_grads: float32, one for each master; None where there is none. They
            are of a loss that was multiplied by the current loss scale.
          forward_finite: bool [], whether that loss was finite.
          moved: variables that the forward pass wrote to, each with what it held
            before and holds again after a skip.

        Returns:
          The metrics of `__call__` but `loss`.
        """
        state, rule = self.state, self.rule
        scale_state, scale = state.read_loss_scale(), self._scale()
        forward_finite = forward_finite & _all_finite([v for v, _ in moved])
        rate = self._update.learning_rate
        halves = half_squares(scaled_grads)
        norm = global_norm(halves) / scale
        grads_finite = self._which_finite(scaled_grads, halves, scale)
        finite = tf.reduce_all(grads_finite)
        if self._clip_norm or self._update.needs_norm:
            finite &= tf.math.is_finite(norm)
        if not self._keras_arithmetic:
            finite &= forward_finite
        factor = updates.clip_factor(norm, self._clip_norm) if self._clip_norm else None
        self._update(scaled_grads, scale, finite, factor)
        updates.select(finite, [v for v, _ in moved], [old for _, old in moved])
        for master, working in self._copies:
            working.assign(tf.cast(master, working.dtype))  # float32 -> 16 bits
        state.count(finite, forward_finite, grads_finite)
        state.write_loss_scale(rule.next_state(scale_state, finite))
        return {
            "grads_finite": finite,
            "forward_finite": forward_finite,
            "loss_scale": scale,
            "grad_norm": norm,
            "learning_rate": rate,
        }

    def _scale(self) -> tf.Tensor:
        """The loss scale of this step, float32 []; a constant costs nothing."""
        if isinstance(self.rule, scaling.NoLossScale):
            return tf.constant(1.0)
        return self.loss_scale

    def _accumulate(
        self, batch: tuple[Any, Any, Any], scale: tf.Tensor
    ) -> tuple[tf.Tensor, list[updates.Grad]]:
        """Returns mean loss and mean scaled float32 gradients of micro-batches."""
        count = self._accumulate_steps
        if count == 1:
            return self._scaled_grads(*batch, scale)
        tf.debugging.assert_equal(
            tf.shape(tf.nest.flatten(batch)[0])[0] % count,
            0,
            f"`accumulate_steps` ({count}) must divide the batch.",
        )

        def take(i: tf.Tensor) -> Any:
            def rows(x: tf.Tensor | None) -> tf.Tensor | None:
                if x is None:
                    return None
                size = tf.shape(x)[0] // count
                return x[i * size : (i + 1) * size]

            return tf.nest.map_structure(rows, batch)

        loss, grads = self._scaled_grads(*take(0), scale)
        missing = [g is None for g in grads]
        sums = [tf.zeros([]) if g is None else g for g in grads]

        def add(i: tf.Tensor, loss: tf.Tensor, sums: list) -> tuple:
            one_loss, one = self._scaled_grads(*take(i), scale)
            one = [tf.zeros([]) if g is None else g for g in one]
            sums = [a + b for a, b in zip(sums, one, strict=True)]
            return i + 1, loss + one_loss, sums

        _, loss, sums = tf.while_loop(
            lambda i, *_: i < count, add, (tf.constant(1), loss, sums)
        )
        mean = [None if no else s / count for no, s in zip(missing, sums, strict=True)]
        return loss / count, mean

    def _scaled_grads(
        self, inputs: Any, labels: Any, sample_weight: Any, scale: tf.Tensor
    ) -> tuple[tf.Tensor, list[updates.Grad]]:
        """Returns the loss and its gradients, times `scale`, in float32."""
        workings = self.state.working_weights
        with tf.GradientTape() as tape:
            outputs, extras = self.forward(inputs)
            loss = mean_loss(self._loss, labels, outputs, sample_weight)
            for master in self._regularized:
                loss += tf.cast(master.regularizer(master.value), tf.float32)
            for extra in extras:
                loss += tf.cast(extra, tf.float32)  # add_loss of a 16-bit layer
            scaled_loss = loss * scale
        regularized = [master.value for master in self._regularized]
        found = tape.gradient(scaled_loss, [*workings, *regularized])
        grads = [_to_float32(g) for g in found[: len(workings)]]  # 16 bits -> float32
        # Keras leaves the repeated rows of a sparse gradient to the optimizer.
        if not self._keras_arithmetic or self._accumulate_steps > 1:
            grads = [g if g is None else tf.convert_to_tensor(g) for g in grads]
        place = {v.ref(): i for i, v in enumerate(self.state.master_weights)}
        for variable, grad in zip(regularized, found[len(workings) :], strict=True):
            i = place[variable.ref()]
            if grads[i] is not None:
                grad += tf.convert_to_tensor(grads[i])
            grads[i] = grad
        return loss, grads

    def _which_finite(
        self, scaled_grads: updates.Grads, halves: tf.Tensor, scale: tf.Tensor
    ) -> tf.Tensor:
        """Returns bool [number of masters]: whether each unscaled gradient is finite.

        And its square, where an infinite norm would do harm: no other look at the
        gradients is needed then. One that is missing is finite.
        """
        finite = tf.math.is_finite(halves)
        # The squares of float16 gradients cannot overflow a float32 sum, nor can
        # dividing them by a scale that is not tiny: one pass over them tells all.
        summable = float(tf.float16.max) / self.rule.min_scale < scaling.LARGEST
        told = [
            grad is None or (is_float16 and summable)
            for grad, is_float16 in zip(scaled_grads, self._from_float16, strict=True)
        ]
        if self._clip_norm or self._update.needs_norm or all(told):
            return finite
        return tf.stack(
            [
                finite[i]
                if told[i]
                else tf.reduce_all(tf.math.is_finite(_values(grad) / scale))
                for i, grad in enumerate(scaled_grads)
            ]
        )


def half_squares(grads: updates.Grads) -> tf.Tensor:
    """Returns half the sum of squares of each gradient, 0 for None, float32 [n]."""
    halves = [0.0 if g is None else tf.nn.l2_loss(_values(g)) for g in grads]
    return tf.stack(halves) if halves else tf.zeros([0])


def global_norm(halves: tf.Tensor) -> tf.Tensor:
    """Returns the square root of the sum of all squares, float32 []."""
    return tf.sqrt(2.0 * tf.reduce_sum(halves))


METRICS = {
    "loss": tf.float32,
    "grads_finite": tf.bool,
    "forward_finite": tf.bool,
    "loss_scale": tf.float32,
    "grad_norm": tf.float32,
    "learning_rate": tf.float32,
}


class EvalStep:
    """Evaluates a float32 model: mean loss and one metric over all examples."""

    def __init__(self, model: keras.Model, loss: str | Callable[..., Any], metric: Any):
        """Prepares the metrics.

        Args:
          model: the model to evaluate, as its user would use it.
          loss: as for `TrainStep`.
          metric: Keras identifier or `keras.metrics.Metric`.
        """
        self._model = model
        self._loss = keras.losses.get(loss)
        self._metric = keras.metrics.get(metric)
        if not isinstance(self._metric, keras.metrics.Metric):
            self._metric = keras.metrics.MeanMetricWrapper(self._metric)
        self._mean = keras.metrics.Mean()
        replicas = distribution.Replicas()
        self._step = tf.function(replicas.each(self._one_step, even=False))

    def __call__(self, batches: tf.data.Dataset) -> dict[str, float]:
        """Returns `eval_loss` and `eval_accuracy` over (inputs, labels) batches."""
        self._metric.reset_state()
        self._mean.reset_state()
        for inputs, labels in batches:
            self._step(inputs, labels)
        return {
            "eval_loss": float(self._mean.result()),
            "eval_accuracy": float(self._metric.result()),
        }

    def _one_step(self, inputs: Any, labels: Any) -> None:
        outputs = self._model(inputs, training=False)
        loss = mean_loss(self._loss, labels, outputs, None)
        rows = tf.shape(tf.nest.flatten(labels)[0])[0]
        loss = tf.where(rows > 0, loss, 0.0)  # a replica may have none
        self._mean.update_state(loss, sample_weight=rows)
        self._metric.update_state(labels, outputs)


def mean_loss(
    loss: Callable[..., Any], labels: Any, outputs: Any, sample_weight: Any
) -> tf.Tensor:
    """Returns the float32 loss, averaged over the batch; outputs of any dtype."""
    outputs = tf.nest.map_structure(lambda x: tf.cast(x, tf.float32), outputs)
    with distribution.alone():
        if isinstance(loss, keras.losses.Loss):
            losses = loss(labels, outputs, sample_weight=sample_weight)
        else:
            losses = tf.cast(loss(labels, outputs), tf.float32)
            if sample_weight is not None:
                losses *= tf.cast(sample_weight, tf.float32)
    return tf.reduce_mean(tf.cast(losses, tf.float32))


def stack_steps(
    one_step: Callable[[], dict[str, tf.Tensor]],
    dtypes: dict[str, tf.DType],
    steps: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Calls a step `steps` times (int32 [], traced); stacks its scalar metrics.

    They travel as one float32 row: a loop pays for every tensor it carries.
    """

    def body(i: tf.Tensor, rows: tf.TensorArray) -> tuple:
        metrics = one_step()
        row = tf.stack([tf.cast(metrics[name], tf.float32) for name in dtypes])
        return i + 1, rows.write(i, row)

    rows = tf.TensorArray(tf.float32, size=steps, element_shape=[len(dtypes)])
    _, rows = tf.while_loop(
        lambda i, _: i < steps, body, (tf.constant(0), rows), parallel_iterations=1
    )
    columns = tf.unstack(rows.stack(), len(dtypes), axis=1)
    return {
        name: tf.cast(column, dtype)
        for (name, dtype), column in zip(dtypes.items(), columns, strict=True)
    }


def _written(variables: Sequence[tf.Variable]) -> list[bool]:
    """Tells which variables the graph traced so far may have written to."""
    graph = tf.compat.v1.get_default_graph()
    if tf.executing_eagerly():
        return [True] * len(variables)
    inner = {
        id(outer): handle
        for outer, handle in zip(
            graph.external_captures, graph.internal_captures, strict=True
        )
    }
    written = []
    for variable in variables:
        handle = inner.get(id(variable.handle))
        uses = [] if handle is None else handle.consumers()
        written.append(any(op.type not in _READS for op in uses))
    return written


def _all_finite(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Returns bool []: a finite loss can leave an infinite variance behind."""
    values = [tf.reshape(v, [-1]) for v in variables if v.dtype.is_floating]
    by_dtype = {v.dtype: [w for w in values if w.dtype == v.dtype] for v in values}
    checks = [
        tf.reduce_all(tf.math.is_finite(tf.concat(v, 0))) for v in by_dtype.values()
    ]
    return tf.reduce_all(checks) if checks else tf.constant(True)


_READS = ("ReadVariableOp", "ResourceGather")


def _values(grad: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    return grad.values if isinstance(grad, tf.IndexedSlices) else grad


def _to_float32(grad: updates.Grad) -> updates.Grad:
    """Casts a dense gradient, or the rows of a sparse one, to float32."""
    return updates.map_grad(lambda g: tf.cast(g, tf.float32), grad)


def _unique(variables: Sequence[keras.Variable], but: set[int]) -> list[keras.Variable]:
    """Returns the distinct variables whose id is not in `but`."""
    kept = {id(v): v for v in variables if id(v) not in but}
    return list(kept.values())
