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
    keras_float16 = (
        config.precision.loop == "keras" and config.precision.precision == "float16"
    )
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
            config.data.batch_size,
            config.training.seed,
            epoch,
            start,
            config.data.augment,
        )
        if config.parallel.strategy == "none":
            return make()
        return strategies.batches(self.strategy, make)

    def evaluate(self) -> dict[str, float]:
        """Returns `eval_loss` and `eval_accuracy` on the test data."""
        from mp_loop.data import sources

        self.step.export()
        self.workers.check_equal(list(self.step.state.named().values()))
        batch_size = self.config.data.batch_size
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
    if config.parallel.strategy == "multi_worker":
        with errors.bad_input(cluster.ClusterError):
            handshake.wait_for_all(
                cluster.task(), _common_flags(config), config.parallel.worker_timeout
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
        strategy = strategies.make(config.parallel.strategy)
        tf.ones((2, 2), "float16")  # of the first one oneDNN may say what it lacks
    config = resolved(config)

    keras.utils.set_random_seed(config.training.seed)
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    source = _source(config)
    _refuse_uneven(config, strategy.num_replicas_in_sync)
    with errors.bad_input(sources.DataError, catalog.ModelError), strategy.scope():
        steps_per_epoch = sources.steps_per_epoch(source, config.data.batch_size)
        model = _model(config, source)
        if config.model.freeze:
            catalog.freeze(model, config.model.freeze)
            _keep_on_host(config, model)
    if config.parallel.sync_batch_norm:
        strategies.synchronize_batch_norm(model)
    phase_ends = _phase_ends(config, steps_per_epoch)
    loss = _loss(config.model.loss, catalog.from_logits(model))
    trained = catalog.Trained(model)

    def make_step(phase: int) -> Any:
        with errors.bad_input(ValueError), strategy.scope():
            if phase < len(phase_ends) - 1:
                trained.head_alone()
                rate = config.model.head_learning_rate
            else:
                trained.everything()
                begins = phase_ends[-2] if phase else 0
                rate = schedules.learning_rate(
                    config.optimizer.schedule,
                    config.optimizer.learning_rate,
                    phase_ends[-1] - begins,
                    config.optimizer.warmup_steps,
                    config.optimizer.decay_fractions,
                    config.optimizer.decay_factor,
                )
            if config.training.rollback:
                rate = schedules.Lowered(rate, config.training.rollback_factor)
            step = _step(config, model, loss, rate)
            if config.training.rollback:
                rate.rollbacks = step.state.rollbacks
        return step

    step = make_step(0)
    with (
        errors.bad_input(ValueError, flag="metric", value=config.model.metric),
        strategy.scope(),
    ):
        evaluation = eval_step.EvalStep(model, loss, config.model.metric)
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
    if config.model.model.startswith(language.PREFIX):
        _refuse_for_texts(config)
        preset = config.model.model.removeprefix(language.PREFIX)
        with errors.bad_input(catalog.ModelError):
            tokenize = language.tokenizer(preset, config.data.sequence_length)
    with errors.bad_input(sources.DataError, flag="dataset", value=config.data.dataset):
        source = sources.load(
            config.data.dataset,
            config.data.data_dir,
            config.data.image_size,
            config.data.crop_pct,
            tokenize,
        )
    if source.is_text:
        return source
    preprocess = catalog.preprocessing(
        config.data.preprocessing, config.model.model, config.model.weights
    )
    channels = source.input_shape[-1]
    if config.data.preprocessing in ("torch", "caffe") and channels != 3:
        raise errors.UsageError(
            f"--preprocessing ({config.data.preprocessing}) is for 3 channels, not the "
            f"{channels} of '{config.data.dataset}'."
        )
    return dataclasses.replace(source, preprocess=preprocess)


def _refuse_for_texts(config: settings.Config) -> None:
    """Names the first flag that texts have no use for."""
    values, defaults = config.values(), settings.Config().values()
    for name in ("augment", "image_size", "crop_pct", "preprocessing", "weights"):
        if values[name] != defaults[name]:
            raise errors.UsageError(
                f"--{name} ({values[name]}) is for images, not for "
                f"--model={config.model.model}."
            )


def _model(config: settings.Config, source: Any) -> Any:
    """Builds the model for the data."""
    from mp_loop.models import catalog, language

    if source.is_text:
        return language.build(
            config.model.model.removeprefix(language.PREFIX),
            config.data.sequence_length,
            source.num_classes,
            config.model.dropout,
            config.training.seed,
        )
    return catalog.build(
        config.model.model,
        source.input_shape,
        source.num_classes,
        config.training.seed,
        config.model.weights,
        config.model.dropout,
    )


def _keep_on_host(config: settings.Config, model: Any) -> None:
    """Leaves an accelerator's memory to what its steps read."""
    from mp_loop.precision import offloading, twins

    if config.precision.loop == "keras" or config.precision.keras_arithmetic:
        return
    if config.parallel.strategy != "none" or config.precision.precision == "float32":
        return
    if not all(map(offloading.is_on_host, model.non_trainable_weights)):
        twin = twins.half_precision_twin(
            model, config.precision.precision, config.precision.float32_layers
        )
        offloading.keep_on_host(model, twin)


def _phase_ends(config: settings.Config, steps_per_epoch: int) -> tuple[int, ...]:
    """The step after the last one of each phase."""
    total_steps = config.training.steps or config.training.epochs * steps_per_epoch
    head_steps = config.model.head_epochs * steps_per_epoch
    if head_steps >= total_steps:
        raise errors.UsageError(
            f"--head_epochs ({config.model.head_epochs}) are {head_steps} steps; the "
            f"run has {total_steps}, and must have more."
        )
    return (head_steps, total_steps) if head_steps else (total_steps,)


def resolved(config: settings.Config) -> settings.Config:
    """Returns the settings with --precision=auto resolved for this machine."""
    if config.precision.precision != "auto":
        return config
    from mp_loop.hardware import machine

    return config.at_precision(machine.best_precision())


def _common_flags(config: settings.Config) -> str:
    """The flags that all workers must share; folders are each machine's own."""
    own = {"data_dir": "", "output_dir": "", "resume": False, "worker_timeout": 1}
    return config.replace(**own).to_flagfile()


def _refuse_uneven(config: settings.Config, replicas: int) -> None:
    """Raises UsageError unless every replica's micro-batches are of one size."""
    parts = replicas * config.optimizer.accumulate_steps
    if config.data.batch_size % parts:
        raise errors.UsageError(
            f"--batch_size ({config.data.batch_size}) must be a multiple of {parts}: "
            f"{replicas} replicas with --accumulate_steps="
            f"{config.optimizer.accumulate_steps}."
        )


def _step(config: settings.Config, model: Any, loss: Any, rate: Any) -> Any:
    """Makes the step of either loop."""
    from mp_loop.hardware import devices
    from mp_loop.step import keras_step, optimizers, train_step

    as_keras = config.precision.loop == "keras" or config.precision.keras_arithmetic
    arguments = {}
    if as_keras and config.optimizer.clip_norm:
        arguments["global_clipnorm"] = config.optimizer.clip_norm
    optimizer = optimizers.make(
        config.optimizer.optimizer,
        rate,
        config.optimizer.momentum,
        config.optimizer.weight_decay,
        **arguments,
    )
    many = config.parallel.strategy != "none"
    jit_compile = devices.use_xla(config.training.jit_compile) and not many
    if config.precision.loop == "keras" and config.precision.precision == "float16":
        # On a CPU Keras' float16 convolutions are emulated one number at a time,
        # five times slower than what XLA makes of them.
        jit_compile = config.training.jit_compile != "off"
    if config.precision.loop == "keras":
        names = ("initial_scale", "growth_interval")
        constants = config.scale.constants
        return keras_step.KerasStep(
            model,
            optimizer,
            loss,
            config.precision.precision,
            scaling=config.loss_scale_kind == "dynamic",
            jit_compile=jit_compile,
            **{name: constants[name] for name in names if name in constants},
        )
    return train_step.TrainStep(
        model,
        optimizer,
        loss,
        config.precision.precision,
        _rule(config),
        float32_layers=config.precision.float32_layers,
        clip_norm=0.0 if as_keras else config.optimizer.clip_norm,
        accumulate_steps=config.optimizer.accumulate_steps,
        jit_compile=jit_compile,
        keras_arithmetic=config.precision.keras_arithmetic,
        recompute=config.precision.recompute,
        all_reduce_dtype=config.parallel.all_reduce_dtype,
    )


def _rule(config: settings.Config) -> Any:
    """Makes the loss-scale rule."""
    from mp_loop.step import loss_scale

    constants = config.scale.constants
    if config.loss_scale_kind == "none":
        return loss_scale.NoLossScale()
    if config.loss_scale_kind == "static":
        return loss_scale.StaticLossScale(constants["initial_scale"])
    if config.scale.scale_preset:
        return loss_scale.DynamicLossScale.preset(
            config.scale.scale_preset, **constants
        )
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
