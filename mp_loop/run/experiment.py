"""The parts of an experiment: data, model, step and evaluation.

`build.from_settings` starts TensorFlow and makes one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import keras
import tensorflow as tf

from mp_loop.config import errors, sections, settings
from mp_loop.data import batching, recipes, sources
from mp_loop.distributed import nests, strategies, workers
from mp_loop.models import heads, trainable_layers
from mp_loop.precision import coverage, offloading, twins
from mp_loop.run import class_weights, metric, phases, step_factory, tasks, trial
from mp_loop.step import averaging, eval_step, loss_names, losses, protocol


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts.

    Attributes:
      config: what it was built from, --precision=auto resolved.
      source: the data, in memory.
      model: the user's float32 model.
      evaluation: of `model`.
      metric: of the evaluation, beside the loss.
      workers: the processes that train together.
      steps: makes the step of each phase.
      step: the step of this phase.
      phase: from 0.
    """

    config: settings.Config
    source: sources.Source
    model: keras.Model
    evaluation: eval_step.EvalStep
    metric: metric.EvaluationMetric
    workers: workers.Workers
    steps: step_factory.StepFactory
    step: protocol.Step
    phase: int = 0

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """For each phase the number of steps up to its end."""
        return self.steps.phases.ends

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.steps.phases.total_steps

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training data."""
        return self.steps.phases.steps_per_epoch

    def in_phase(self, phase: int) -> Experiment:
        """Returns the experiment with a step that trains what this phase trains.

        The model, its random states, the loss scale and all counts go on; the
        optimizer starts anew.
        """
        if phase == self.phase:
            return self
        self.step.export()
        step = self.steps.make(phase)
        step.continue_from(self.step)
        return dataclasses.replace(self, step=step, phase=phase)

    def batches(self, epoch: int, start: int = 0) -> Iterable[nests.Batch]:
        """Returns the batches of an epoch, from batch `start` on.

        They are a `tf.data.Dataset`, or, with a strategy, a distributed one.
        """
        make = functools.partial(
            batching.training_batches,
            self.source,
            self.config.data.batch_size,
            self.config.training.seed,
            epoch,
            start,
            recipes.from_settings(self.config.data),
            raw=True,
        )
        if self.config.parallel.strategy == "none":
            return make()
        return strategies.batches(self.steps.strategy, make)

    def coverage(self) -> coverage.Coverage | None:
        """Tells how much of the step's products is of 16 bits; None in float32."""
        dtype = self.config.precision.precision
        if dtype == "float32" or not getattr(self.model, "inputs", None):
            return None
        inputs = None
        if self.source.is_text:  # a model may take texts of any length
            shape = (1, *self.source.input_shape)
            inputs = self.source.prepare(tf.zeros(shape, tf.int32))
        return coverage.of_twin(self.step.twin, self.model, dtype, inputs)

    def evaluate(self) -> dict[str, float]:
        """Returns `eval_loss` and the metric, by its key, on the test data."""
        self.step.export()
        self.workers.check_equal(list(self.step.state.named().values()))
        batch_size = self.config.data.batch_size
        batches = batching.evaluation_batches(self.source, batch_size, raw=True)
        with averaging.averaged(self.step):
            found = self.evaluation(batches)
        return self.metric.named(found)


def make(config: settings.Config, strategy: tf.distribute.Strategy) -> Experiment:
    """Loads the data and makes model, step and evaluation.

    Args:
      config: of the experiment, --precision=auto resolved.
      strategy: which devices share a step.

    Raises:
      UsageError: the data, the model or the loss cannot be loaded, or they do not
        fit together.
    """
    keras.utils.set_random_seed(config.training.seed)
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    source, model = tasks.make(config, strategy)
    _refuse_uneven_batches(config, strategy.num_replicas_in_sync)
    with errors.bad_input(errors.DataError, errors.ModelError), strategy.scope():
        steps_per_epoch = batching.steps_per_epoch(source, config.data.batch_size)
        if config.model.freeze:
            trainable_layers.freeze(model, config.model.freeze)
        if config.model.freeze or config.model.lora_rank:
            _keep_frozen_on_host(config, model)
    if config.parallel.sync_batch_norm:
        strategies.synchronize_batch_norm(model)
    from_logits = heads.from_logits(model)
    mixes = recipes.from_settings(config.data).mixes
    training_loss, loss = _losses(config.model, from_logits, source, mixes)
    trial.check(config.model, model, loss, source)
    with strategy.scope():
        measured = metric.make(config.model.measured_by, from_logits, source)
        evaluation = eval_step.EvalStep(
            model, loss, measured.metric, source.prepare_in_step
        )
    _refuse_unknown_direction(config, measured)
    steps = step_factory.StepFactory(
        config=config,
        phases=phases.from_settings(config, steps_per_epoch),
        model=model,
        trained=trainable_layers.TrainableLayers(model),
        loss=training_loss,
        strategy=strategy,
        metric=_of_batches(measured, mixes),
        prepare=source.prepare_in_step,
    )
    step = steps.make(phase=0)
    together = workers.Workers(strategy)
    return Experiment(
        config, source, model, evaluation, measured, together, steps, step
    )


def _losses(
    named: sections.Model, from_logits: bool, source: sources.Source, mixes: bool
) -> tuple[losses.Loss, losses.Loss]:
    """Makes the loss to train with, and the plain one to evaluate with."""
    weights = class_weights.parse(named.class_weights, source)
    with errors.bad_input(ValueError, flag="loss", value=named.trained_by):
        plain = loss_names.make(named.trained_by, from_logits)
        name = "categorical_crossentropy" if mixes else named.trained_by
        smoothing = named.label_smoothing
        return loss_names.make(name, from_logits, smoothing, weights), plain


def _of_batches(
    measured: metric.EvaluationMetric, mixes: bool
) -> keras.metrics.Metric | None:
    """The metric of training batches, whose labels may be mixed; None of perplexity."""
    if mixes and measured.metric is not None:
        return metric.OfShares(measured.metric)
    return measured.metric


def _refuse_unknown_direction(
    config: settings.Config, measured: metric.EvaluationMetric
) -> None:
    """Refuses to choose checkpoints by a metric that may be good or bad."""
    if config.records.best_by == "eval_accuracy" and measured.higher_is_better is None:
        raise errors.UsageError(
            f"--metric ({config.model.measured_by}) does not say whether higher or "
            "lower is better: choose the best checkpoint with --best_by=eval_loss, or "
            "none."
        )


def _refuse_uneven_batches(config: settings.Config, replicas: int) -> None:
    """Refuses micro-batches of unequal sizes on the replicas."""
    accumulate_steps = config.optimizer.accumulate_steps
    parts = replicas * accumulate_steps
    if config.data.batch_size % parts:
        raise errors.UsageError(
            f"--batch_size ({config.data.batch_size}) must be a multiple of {parts}: "
            f"{replicas} replicas with --accumulate_steps={accumulate_steps}."
        )


def _keep_frozen_on_host(config: settings.Config, model: keras.Model) -> None:
    """Leaves an accelerator's memory to the weights that its steps read."""
    precision = config.precision
    if precision.loop == "keras" or precision.keras_arithmetic:
        return
    if config.parallel.strategy != "none" or precision.precision == "float32":
        return
    if not all(map(offloading.is_on_host, model.non_trainable_weights)):
        twin = twins.half_precision_twin(
            model, precision.precision, precision.float32_layers
        )
        offloading.keep_on_host(model, twin)
