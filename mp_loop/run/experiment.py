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

from mp_loop.config import errors, settings
from mp_loop.distributed import cluster, handshake
from mp_loop.hardware import startup


def prepare(config: settings.Config) -> None:
    """Sets what TensorFlow reads when it is imported."""
    # On a CPU with AVX512-FP16, oneDNN's float16 convolution gradients run on its
    # reference code, a hundred times slower.
    keras_float16 = config.loop == "keras" and config.precision == "float16"
    startup.prefer_onednn(unless=keras_float16)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts; `step` is a `TrainStep` or a `KerasStep`.

    With --head_epochs there are two phases, each with its own step, optimizer and
    schedule: the last layer alone, then what --freeze leaves.

    Attributes:
      config: what it was built from, --precision=auto resolved.
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

    config: settings.Config
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
        from mp_loop.data import sources
        from mp_loop.distributed import strategies

        config = self.config
        make = functools.partial(
            sources.training_batches,
            self.source,
            config.batch_size,
            config.seed,
            epoch,
            start,
            config.augment,
        )
        if config.strategy == "none":
            return make()
        return strategies.batches(self.strategy, make)

    def evaluate(self) -> dict[str, float]:
        """Returns `eval_loss` and `eval_accuracy` on the test data."""
        from mp_loop.data import sources

        self.step.export()
        self.workers.check_equal(list(self.step.state.named().values()))
        batch_size = self.config.batch_size
        return self.evaluation(sources.evaluation_batches(self.source, batch_size))


def build(config: settings.Config) -> Experiment:
    """Loads the data and makes model, step and evaluation.

    Args:
      config: lawful settings.

    Raises:
      UsageError: the data, the model or the loss are not to be had, or do not
        fit each other, or workers do not.
      cluster.WorkerLost: other workers did not come.
    """
    prepare(config)
    if config.strategy == "multi_worker":
        with errors.bad_input(cluster.ClusterError):
            handshake.wait_for_all(
                cluster.task(), _common_flags(config), config.worker_timeout
            )
    # Only now TensorFlow, which takes seconds: a bad flag is told at once.
    with startup.quiet_start():
        import keras
        import tensorflow as tf

        from mp_loop.data import sources
        from mp_loop.distributed import strategies, workers
        from mp_loop.models import catalog
        from mp_loop.step import eval_step, schedules

        tf.config.list_physical_devices()
        strategy = strategies.make(config.strategy)
        tf.ones((2, 2), "float16")  # of the first one oneDNN may say what it lacks
    config = resolved(config)

    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    source = _source(config)
    _refuse_uneven(config, strategy.num_replicas_in_sync)
    with errors.bad_input(sources.DataError, catalog.ModelError), strategy.scope():
        steps_per_epoch = sources.steps_per_epoch(source, config.batch_size)
        model = _model(config, source)
        if config.freeze:
            catalog.freeze(model, config.freeze)
            _keep_on_host(config, model)
    if config.sync_batch_norm:
        strategies.synchronize_batch_norm(model)
    phase_ends = _phase_ends(config, steps_per_epoch)
    loss = _loss(config.loss, catalog.from_logits(model))
    trained = catalog.Trained(model)

    def make_step(phase: int) -> Any:
        with errors.bad_input(ValueError), strategy.scope():
            if phase < len(phase_ends) - 1:
                trained.head_alone()
                rate = config.head_learning_rate
            else:
                trained.everything()
                begins = phase_ends[-2] if phase else 0
                rate = schedules.learning_rate(
                    config.schedule,
                    config.learning_rate,
                    phase_ends[-1] - begins,
                    config.warmup_steps,
                    config.decay_fractions,
                    config.decay_factor,
                )
            if config.rollback:
                rate = schedules.Lowered(rate, config.rollback_factor)
            step = _step(config, model, loss, rate)
            if config.rollback:
                rate.rollbacks = step.state.rollbacks
        return step

    step = make_step(0)
    with (
        errors.bad_input(ValueError, flag="metric", value=config.metric),
        strategy.scope(),
    ):
        evaluation = eval_step.EvalStep(model, loss, config.metric)
    return Experiment(
        config,
        source,
        model,
        step,
        evaluation,
        steps_per_epoch,
        phase_ends,
        0,
        strategy,
        workers.Workers(strategy),
        make_step,
    )


def _source(config: settings.Config) -> Any:
    """Loads the data, and says what makes the model's inputs of them."""
    from mp_loop.data import sources
    from mp_loop.models import catalog, language

    tokenize = None
    if config.model.startswith(language.PREFIX):
        _refuse_for_texts(config)
        preset = config.model.removeprefix(language.PREFIX)
        with errors.bad_input(catalog.ModelError):
            tokenize = language.tokenizer(preset, config.sequence_length)
    with errors.bad_input(sources.DataError, flag="dataset", value=config.dataset):
        source = sources.load(
            config.dataset,
            config.data_dir,
            config.image_size,
            config.crop_pct,
            tokenize,
        )
    if source.is_text:
        return source
    preprocess = catalog.preprocessing(
        config.preprocessing, config.model, config.weights
    )
    channels = source.input_shape[-1]
    if config.preprocessing in ("torch", "caffe") and channels != 3:
        raise errors.UsageError(
            f"--preprocessing ({config.preprocessing}) is for 3 channels, not the "
            f"{channels} of '{config.dataset}'."
        )
    return dataclasses.replace(source, preprocess=preprocess)


def _refuse_for_texts(config: settings.Config) -> None:
    """Names the first flag that texts have no use for."""
    defaults = settings.Config()
    for name in ("augment", "image_size", "crop_pct", "preprocessing", "weights"):
        value = getattr(config, name)
        if value != getattr(defaults, name):
            raise errors.UsageError(
                f"--{name} ({value}) is for images, not for --model={config.model}."
            )


def _model(config: settings.Config, source: Any) -> Any:
    """Builds the model for the data."""
    from mp_loop.models import catalog, language

    if source.is_text:
        return language.build(
            config.model.removeprefix(language.PREFIX),
            config.sequence_length,
            source.num_classes,
            config.dropout,
            config.seed,
        )
    return catalog.build(
        config.model,
        source.input_shape,
        source.num_classes,
        config.seed,
        config.weights,
        config.dropout,
    )


def _keep_on_host(config: settings.Config, model: Any) -> None:
    """Leaves an accelerator's memory to what its steps read."""
    from mp_loop.precision import twins

    if config.loop == "keras" or config.keras_arithmetic:
        return
    if config.strategy != "none" or config.precision == "float32":
        return
    if not all(map(twins.is_on_host, model.non_trainable_weights)):
        twin = twins.half_precision_twin(model, config.precision, config.float32_layers)
        twins.keep_on_host(model, twin)


def _phase_ends(config: settings.Config, steps_per_epoch: int) -> tuple[int, ...]:
    """The step after the last one of each phase."""
    total_steps = config.steps or config.epochs * steps_per_epoch
    head_steps = config.head_epochs * steps_per_epoch
    if head_steps >= total_steps:
        raise errors.UsageError(
            f"--head_epochs ({config.head_epochs}) are {head_steps} steps; the run "
            f"has {total_steps}, and must have more."
        )
    return (head_steps, total_steps) if head_steps else (total_steps,)


def resolved(config: settings.Config) -> settings.Config:
    """Returns the settings with --precision=auto resolved for this machine."""
    if config.precision != "auto":
        return config
    from mp_loop.hardware import machine

    return config.at_precision(machine.best_precision())


def _common_flags(config: settings.Config) -> str:
    """The flags that all workers must share; folders are each machine's own."""
    own = {"data_dir": "", "output_dir": "", "resume": False, "worker_timeout": 1}
    return dataclasses.replace(config, **own).to_flagfile()


def _refuse_uneven(config: settings.Config, replicas: int) -> None:
    """Raises UsageError unless every replica's micro-batches are of one size."""
    parts = replicas * config.accumulate_steps
    if config.batch_size % parts:
        raise errors.UsageError(
            f"--batch_size ({config.batch_size}) must be a multiple of {parts}: "
            f"{replicas} replicas with --accumulate_steps="
            f"{config.accumulate_steps}."
        )


def _step(config: settings.Config, model: Any, loss: Any, rate: Any) -> Any:
    """Makes the step of either loop."""
    from mp_loop.hardware import devices
    from mp_loop.step import keras_step, optimizers, train_step

    as_keras = config.loop == "keras" or config.keras_arithmetic
    arguments = {}
    if as_keras and config.clip_norm:
        arguments["global_clipnorm"] = config.clip_norm
    optimizer = optimizers.make(
        config.optimizer,
        rate,
        config.momentum,
        config.weight_decay,
        **arguments,
    )
    many = config.strategy != "none"
    jit_compile = devices.use_xla(config.jit_compile) and not many
    if config.loop == "keras" and config.precision == "float16":
        # On a CPU Keras' float16 convolutions are emulated one number at a time,
        # five times slower than what XLA makes of them.
        jit_compile = config.jit_compile != "off"
    if config.loop == "keras":
        names = ("initial_scale", "growth_interval")
        constants = config.scale_constants()
        return keras_step.KerasStep(
            model,
            optimizer,
            loss,
            config.precision,
            scaling=config.loss_scale_kind == "dynamic",
            jit_compile=jit_compile,
            **{name: constants[name] for name in names if name in constants},
        )
    return train_step.TrainStep(
        model,
        optimizer,
        loss,
        config.precision,
        _rule(config),
        float32_layers=config.float32_layers,
        clip_norm=0.0 if as_keras else config.clip_norm,
        accumulate_steps=config.accumulate_steps,
        jit_compile=jit_compile,
        keras_arithmetic=config.keras_arithmetic,
        recompute=config.recompute,
        all_reduce_dtype=config.all_reduce_dtype,
    )


def _rule(config: settings.Config) -> Any:
    """Makes the loss-scale rule."""
    from mp_loop.step import loss_scale

    constants = config.scale_constants()
    if config.loss_scale_kind == "none":
        return loss_scale.NoLossScale()
    if config.loss_scale_kind == "static":
        return loss_scale.StaticLossScale(constants["initial_scale"])
    if config.scale_preset:
        return loss_scale.DynamicLossScale.preset(config.scale_preset, **constants)
    return loss_scale.DynamicLossScale(**constants)


def _loss(name: str, from_logits: bool) -> Any:
    """Makes the loss, told whether the model's outputs are logits."""
    import keras

    with errors.bad_input(ValueError, flag="loss", value=name):
        loss = keras.losses.get(name)
    if callable(loss) and hasattr(keras.losses, type(loss).__name__):
        return loss
    if "crossentropy" not in name:
        return loss
    return lambda labels, outputs: loss(labels, outputs, from_logits=from_logits)
