"""The same step on Keras' own machinery: what mp_loop is measured against.

    step = KerasStep(model, keras.optimizers.Adam(1e-3), loss, "float16")

A `mixed_float16` policy on every layer, `LossScaleOptimizer` around the
optimizer, one `tf.function` step: the loop Keras' users write. It starts from
the weights of a float32 model and `export` writes them back there, so that
everything around the step (data, evaluation, files) is common to both loops.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.precision import cloning, copies, pairs
from mp_loop.step import (
    batch_metrics,
    gradients,
    losses,
    metrics,
    optimizers,
    placement,
    preparing,
    train_state,
)

POLICIES = {
    "float16": "mixed_float16",
    "bfloat16": "mixed_bfloat16",
    "float32": "float32",
}


class KerasStep:
    """Trains with Keras' mixed precision; the interface of `TrainStep`.

    Attributes:
      model: the user's float32 model; current after `export`.
      twin: the model under Keras' policy; in float32 the model itself.
      optimizer: the user's, inside LossScaleOptimizer.
      prepare: makes the model's inputs of what the step is given.
      scale_variables: LossScaleOptimizer's scale (float32) and its count of
        clean steps (integer); empty without it.
      state: `TrainState` that holds the same variables and counters.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: losses.LossesLike,
        precision: str = "float16",
        *,
        scaling: bool = True,
        initial_scale: float = 2.0**15,
        growth_interval: int = 2000,
        jit_compile: bool = False,
        metrics: batch_metrics.MetricsLike = None,
        prepare: preparing.Prepare | None = None,
    ):
        """Clones the model under Keras' policy and builds the optimizer.

        Args:
          model: a built functional or Sequential float32 Keras model.
          optimizer: any Keras optimizer; it is wrapped here.
          loss: as for `TrainStep`.
          precision: "float16", "bfloat16" or "float32".
          scaling: whether to wrap the optimizer in LossScaleOptimizer.
          initial_scale: of LossScaleOptimizer.
          growth_interval: its `dynamic_growth_steps`.
          jit_compile: as for `TrainStep`.
          metrics: as for `TrainStep`.
          prepare: as for `TrainStep`.
        """
        self.model = model
        self.twin = model
        if precision != "float32":  # which may be what cannot be made again
            self.twin = under_policy(model, POLICIES[precision])
        names = getattr(model, "output_names", None)
        self._loss = losses.of(loss, names=names)
        self._measure = batch_metrics.BatchMetrics(metrics, names)
        self.optimizer = optimizer
        self._optimizer = optimizer
        if scaling:
            self._optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale, dynamic_growth_steps=growth_interval
            )
        self._pairs = pairs.of_weights(model, self.twin)
        mixed_of = {id(master): mixed for master, mixed in self._pairs}
        self._trained = [mixed_of[id(v)] for v in model.trainable_variables]
        self._optimizer.build(self._trained)
        self.scale_variables = ()
        if scaling:
            variables = (self._optimizer.dynamic_scale, self._optimizer.step_counter)
            self.scale_variables = tuple(v.value for v in variables)
        self.state = self._make_state(
            [mixed_of[id(v)].value for v in model.non_trainable_weights]
        )
        self.prepare = preparing.or_unchanged(prepare)
        self._step = placement.function(
            self._one_step,
            self.twin,
            jit_compile,
            around=lambda step: preparing.before(step, self.prepare),
        )
        self._run = tf.function(self._many_steps, autograph=False)

    def _make_state(self, others: list[tf.Variable]) -> train_state.TrainState:
        """Names the variables; `others` are weights that are not trained."""
        trainable = [v.value for v in self._trained]
        known = {id(v) for v in self.twin.weights}
        return train_state.TrainState(
            master_weights=trainable,
            working_weights=trainable,
            other_weights=others,
            seeds=[v.value for v in self.twin.variables if id(v) not in known],
            slots=[v.value for v in self._optimizer.variables],
        )

    @property
    def loss_scale(self) -> tf.Tensor:
        """The loss scale of the next step, float32 []."""
        if not self.scale_variables:
            return tf.constant(1.0)
        return tf.identity(self.scale_variables[0])

    @property
    def min_scale(self) -> float:
        """LossScaleOptimizer has no floor."""
        return 0.0

    def __call__(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> dict[str, tf.Tensor]:
        """Takes one step; returns the metrics of `TrainStep` but two."""
        return self._step(inputs, labels, sample_weight)

    def run(self, iterator: nests.Batches, steps: int) -> dict[str, tf.Tensor]:
        """Takes many steps in one call, as `TrainStep.run`."""
        with metrics.told_of_the_end(steps, self.state.step):
            return self._run(iterator, tf.convert_to_tensor(steps, tf.int32))

    def continue_from(self, before: KerasStep) -> None:
        """Takes over from a step that trained other layers of the same model."""
        self.state.continue_from(before.state)
        pairs = zip(self.scale_variables, before.scale_variables, strict=True)
        for variable, value in pairs:
            variable.assign(value)

    def export(self) -> keras.Model:
        """Copies the weights to the float32 model and returns it."""
        for variable, mixed in self._pairs:
            variable.assign(mixed)
        return self.model

    def graph(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> tf.Graph:
        """Returns the traced step, for TensorBoard; `tf.TensorSpec`s will do."""
        return self._step.get_concrete_function(inputs, labels, sample_weight).graph

    def _many_steps(
        self, iterator: nests.Batches, steps: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        ours = ("grad_norm", "skip_reason")
        dtypes = {k: v for k, v in metrics.OF_RUN.items() if k not in ours}
        dtypes |= self._measure.dtypes
        return metrics.stack_steps(metrics.on_next(self, iterator), dtypes, steps)

    def _one_step(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            outputs = self.twin(inputs, training=True)
            outputs = gradients.outputs_in_float32(outputs)
            loss = self._loss(labels, outputs, sample_weight)
            for extra in self.twin.losses:
                loss += tf.cast(extra, tf.float32)
            scaled_loss = self._optimizer.scale_loss(loss)
        rate = optimizers.learning_rate(self._optimizer)
        before = tf.identity(self.optimizer._iterations.value)
        scale = self.loss_scale
        grads = tape.gradient(scaled_loss, [v.value for v in self._trained])
        self._optimizer.apply(grads, self._trained)
        applied = self.optimizer._iterations.value > before
        forward_finite = tf.math.is_finite(loss)
        self.state.count(applied, forward_finite)
        return {
            "loss": loss,
            **self._measure(labels, outputs, sample_weight),
            "grads_finite": applied,
            "forward_finite": forward_finite,
            "loss_scale": scale,
            "learning_rate": rate,
        }


def under_policy(model: keras.Model, policy: str) -> keras.Model:
    """Clones a float32 model as if built under a global policy of Keras.

    The last layers stay float32, as Keras' guide tells its users to write them.

    Raises:
      ValueError: Keras cannot make a layer again under the policy, by name.
    """
    last = cloning.output_operations(model)

    def convert(layer: keras.Operation) -> keras.Operation:
        if not isinstance(layer, keras.layers.Layer):
            return layer
        with copies.under_keras_policy(
            f"layer '{layer.name}' ({type(layer).__name__})"
        ):
            config = layer.get_config()
            if id(layer) not in last and layer.dtype_policy.name == "float32":
                config = copies.under_policy(layer, keras.DTypePolicy(policy))
            return copies.copy(layer, config)

    with copies.under_keras_policy(model.name):
        return cloning.clone(model, convert)
