"""From settings to the parts of an experiment: data, model, step, evaluation.

    prepare(settings)              # before TensorFlow is imported
    experiment = build(settings)   # imports it

Every command that trains starts here. Bad input becomes `command.UsageError`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from mp_loop import cluster, command, config, processor


def prepare(settings: config.Config) -> None:
    """Sets what TensorFlow reads when it is imported."""
    # On a CPU with AVX512-FP16, oneDNN's float16 convolution gradients run on its
    # reference code, a hundred times slower.
    keras_float16 = settings.loop == "keras" and settings.precision == "float16"
    processor.prefer_onednn(unless=keras_float16)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts; `step` is a `TrainStep` or a `KerasStep`.

    With --head_epochs there are two phases, each with its own step, optimizer and
    schedule: the last layer alone, then what --freeze leaves.

    Attributes:
      settings: what it was built from, --precision=auto resolved.
      source: the data, in memory.
      model: the user's float32 model.
      step: one training step.
      evaluation: `EvalStep` on `model`.
      steps_per_epoch: batches in one pass over the training data.
      phase_ends: for each phase the number of steps up to its end.
      phase: the one that `step` is of, from 0.
      strategy: which devices share a step.
      workers: what its workers tell each other.
      make_step: makes the step of a phase.
    """

    settings: config.Config
    source: Any
    model: Any
    step: Any
    evaluation: Any
    steps_per_epoch: int
    phase_ends: tuple[int, ...]
    phase: int
    strategy: Any
    workers: Any
    make_step: Callable[[int], Any]

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.phase_ends[-1]

    def in_phase(self, phase: int) -> Experiment:
        """Returns the experiment with a step that trains what this phase trains.

        The model, its random states, the loss scale and all counts go on; the
        optimizer starts anew.
        """
        if phase == self.phase:
            return self
        self.step.export()
        step = self.make_step(phase)
        step.continue_from(self.step)
        return dataclasses.replace(self, step=step, phase=phase)

    def batches(self, epoch: int, start: int = 0) -> Any:
        """Returns the `tf.data.Dataset` of an epoch, from batch `start` on."""
        from mp_loop import data, distribution

        settings = self.settings
        make = functools.partial(
            data.training_batches,
            self.source,
            settings.batch_size,
            settings.seed,
            epoch,
            start,
            settings.augment,
        )
        if settings.strategy == "none":
            return make()
        return distribution.batches(self.strategy, make)

    def evaluate(self) -> dict[str, float]:
        """Returns `eval_loss` and `eval_accuracy` on the test data."""
        from mp_loop import data

        self.step.export()
        self.workers.check_equal(list(self.step.state.named().values()))
        batch_size = self.settings.batch_size
        return self.evaluation(data.evaluation_batches(self.source, batch_size))


def build(settings: config.Config) -> Experiment:
    """Loads the data and makes model, step and evaluation.

    Args:
      settings: lawful settings.

    Raises:
      UsageError: the data, the model or the loss are not to be had, or do not
        fit each other, or workers do not.
      cluster.WorkerLost: other workers did not come.
    """
    prepare(settings)
    if settings.strategy == "multi_worker":
        with command.bad_input(cluster.ClusterError):
            cluster.call_roll(
                cluster.task(), _common_flags(settings), settings.worker_timeout
            )
    # Only now TensorFlow, which takes seconds: a bad flag is told at once.
    with command.quiet_start():
        import keras
        import tensorflow as tf

        from mp_loop import data, distribution, models, updates
        from mp_loop import step as steps

        tf.config.list_physical_devices()
        strategy = distribution.make(settings.strategy)
        tf.ones((2, 2), "float16")  # of the first one oneDNN may say what it lacks
    settings = resolved(settings)

    keras.utils.set_random_seed(settings.seed)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    source = _source(settings)
    _refuse_uneven(settings, strategy.num_replicas_in_sync)
    with command.bad_input(data.DataError, models.ModelError), strategy.scope():
        steps_per_epoch = data.steps_per_epoch(source, settings.batch_size)
        model = _model(settings, source)
        if settings.freeze:
            models.freeze(model, settings.freeze)
            _keep_on_host(settings, model)
    if settings.sync_batch_norm:
        distribution.synchronize_batch_norm(model)
    phase_ends = _phase_ends(settings, steps_per_epoch)
    loss = _loss(settings.loss, models.from_logits(model))
    trained = models.Trained(model)

    def make_step(phase: int) -> Any:
        with command.bad_input(ValueError), strategy.scope():
            if phase < len(phase_ends) - 1:
                trained.head_alone()
                rate = settings.head_learning_rate
            else:
                trained.everything()
                begins = phase_ends[-2] if phase else 0
                rate = updates.learning_rate(
                    settings.schedule,
                    settings.learning_rate,
                    phase_ends[-1] - begins,
                    settings.warmup_steps,
                    settings.decay_fractions,
                    settings.decay_factor,
                )
            if settings.rollback:
                rate = updates.Lowered(rate, settings.rollback_factor)
            step = _step(settings, model, loss, rate)
            if settings.rollback:
                rate.rollbacks = step.state.rollbacks
        return step

    step = make_step(0)
    with (
        command.bad_input(ValueError, flag="metric", value=settings.metric),
        strategy.scope(),
    ):
        evaluation = steps.EvalStep(model, loss, settings.metric)
    return Experiment(
        settings,
        source,
        model,
        step,
        evaluation,
        steps_per_epoch,
        phase_ends,
        0,
        strategy,
        distribution.Workers(strategy),
        make_step,
    )


def _source(settings: config.Config) -> Any:
    """Loads the data, and says what makes the model's inputs of them."""
    from mp_loop import data, hub, models

    tokenize = None
    if settings.model.startswith(hub.PREFIX):
        _refuse_for_texts(settings)
        preset = settings.model.removeprefix(hub.PREFIX)
        with command.bad_input(models.ModelError):
            tokenize = hub.tokenizer(preset, settings.sequence_length)
    with command.bad_input(data.DataError, flag="dataset", value=settings.dataset):
        source = data.load(
            settings.dataset,
            settings.data_dir,
            settings.image_size,
            settings.crop_pct,
            tokenize,
        )
    if source.is_text:
        return source
    preprocess = models.preprocessing(
        settings.preprocessing, settings.model, settings.weights
    )
    channels = source.input_shape[-1]
    if settings.preprocessing in ("torch", "caffe") and channels != 3:
        raise command.UsageError(
            f"--preprocessing ({settings.preprocessing}) is for 3 channels, not the "
            f"{channels} of '{settings.dataset}'."
        )
    return dataclasses.replace(source, preprocess=preprocess)


def _refuse_for_texts(settings: config.Config) -> None:
    """Names the first flag that texts have no use for."""
    defaults = config.Config()
    for name in ("augment", "image_size", "crop_pct", "preprocessing", "weights"):
        value = getattr(settings, name)
        if value != getattr(defaults, name):
            raise command.UsageError(
                f"--{name} ({value}) is for images, not for --model={settings.model}."
            )


def _model(settings: config.Config, source: Any) -> Any:
    """Builds the model for the data."""
    from mp_loop import hub, models

    if source.is_text:
        return hub.build(
            settings.model.removeprefix(hub.PREFIX),
            settings.sequence_length,
            source.num_classes,
            settings.dropout,
            settings.seed,
        )
    return models.build(
        settings.model,
        source.input_shape,
        source.num_classes,
        settings.seed,
        settings.weights,
        settings.dropout,
    )


def _keep_on_host(settings: config.Config, model: Any) -> None:
    """Leaves an accelerator's memory to what its steps read."""
    from mp_loop import precision

    if settings.loop == "keras" or settings.keras_arithmetic:
        return
    if settings.strategy != "none" or settings.precision == "float32":
        return
    if not all(map(precision.is_on_host, model.non_trainable_weights)):
        twin = precision.half_precision_twin(
            model, settings.precision, settings.float32_layers
        )
        precision.keep_on_host(model, twin)


def _phase_ends(settings: config.Config, steps_per_epoch: int) -> tuple[int, ...]:
    """The step after the last one of each phase."""
    total_steps = settings.steps or settings.epochs * steps_per_epoch
    head_steps = settings.head_epochs * steps_per_epoch
    if head_steps >= total_steps:
        raise command.UsageError(
            f"--head_epochs ({settings.head_epochs}) are {head_steps} steps; the run "
            f"has {total_steps}, and must have more."
        )
    return (head_steps, total_steps) if head_steps else (total_steps,)


def resolved(settings: config.Config) -> config.Config:
    """Returns the settings with --precision=auto resolved for this machine."""
    if settings.precision != "auto":
        return settings
    from mp_loop import machine

    return settings.at_precision(machine.best_precision())


def _common_flags(settings: config.Config) -> str:
    """The flags that all workers must share; folders are each machine's own."""
    own = {"data_dir": "", "output_dir": "", "resume": False, "worker_timeout": 1}
    return dataclasses.replace(settings, **own).to_flagfile()


def _refuse_uneven(settings: config.Config, replicas: int) -> None:
    """Raises UsageError unless every replica's micro-batches are of one size."""
    parts = replicas * settings.accumulate_steps
    if settings.batch_size % parts:
        raise command.UsageError(
            f"--batch_size ({settings.batch_size}) must be a multiple of {parts}: "
            f"{replicas} replicas with --accumulate_steps="
            f"{settings.accumulate_steps}."
        )


def _step(settings: config.Config, model: Any, loss: Any, rate: Any) -> Any:
    """Makes the step of either loop."""
    from mp_loop import devices, keras_baseline, updates
    from mp_loop import step as steps

    as_keras = settings.loop == "keras" or settings.keras_arithmetic
    arguments = {}
    if as_keras and settings.clip_norm:
        arguments["global_clipnorm"] = settings.clip_norm
    optimizer = updates.make_optimizer(
        settings.optimizer,
        rate,
        settings.momentum,
        settings.weight_decay,
        **arguments,
    )
    many = settings.strategy != "none"
    jit_compile = devices.use_xla(settings.jit_compile) and not many
    if settings.loop == "keras" and settings.precision == "float16":
        # On a CPU Keras' float16 convolutions are emulated one number at a time,
        # five times slower than what XLA makes of them.
        jit_compile = settings.jit_compile != "off"
    if settings.loop == "keras":
        names = ("initial_scale", "growth_interval")
        constants = settings.scale_constants()
        return keras_baseline.KerasStep(
            model,
            optimizer,
            loss,
            settings.precision,
            scaling=settings.loss_scale_kind == "dynamic",
            jit_compile=jit_compile,
            **{name: constants[name] for name in names if name in constants},
        )
    return steps.TrainStep(
        model,
        optimizer,
        loss,
        settings.precision,
        _rule(settings),
        float32_layers=settings.float32_layers,
        clip_norm=0.0 if as_keras else settings.clip_norm,
        accumulate_steps=settings.accumulate_steps,
        jit_compile=jit_compile,
        keras_arithmetic=settings.keras_arithmetic,
        recompute=settings.recompute,
        all_reduce_dtype=settings.all_reduce_dtype,
    )


def _rule(settings: config.Config) -> Any:
    """Makes the loss-scale rule."""
    from mp_loop import loss_scale

    constants = settings.scale_constants()
    if settings.loss_scale_kind == "none":
        return loss_scale.NoLossScale()
    if settings.loss_scale_kind == "static":
        return loss_scale.StaticLossScale(constants["initial_scale"])
    if settings.scale_preset:
        return loss_scale.DynamicLossScale.preset(settings.scale_preset, **constants)
    return loss_scale.DynamicLossScale(**constants)


def _loss(name: str, from_logits: bool) -> Any:
    """Makes the loss, told whether the model's outputs are logits."""
    import keras

    with command.bad_input(ValueError, flag="loss", value=name):
        loss = keras.losses.get(name)
    if callable(loss) and hasattr(keras.losses, type(loss).__name__):
        return loss
    if "crossentropy" not in name:
        return loss
    return lambda labels, outputs: loss(labels, outputs, from_logits=from_logits)
