"""The settings in sections; each section is read by one part of the package.

Each setting is declared once, with its default, its help text and its valid values.
Its name is also the name of its flag, unique over all sections.
"""

from __future__ import annotations

import dataclasses

from mp_loop.config import choices, fields


@dataclasses.dataclass(frozen=True)
class Data(fields.Section):
    """What is trained on: read by `mp_loop.data`."""

    dataset: str = fields.setting(
        "fashion_mnist_mini", "TFDS data set; the default is embedded."
    )
    data_dir: str = fields.setting("", "TFDS folder; empty: TFDS's own default.")
    image_size: int = fields.setting(
        0,
        "Images are cropped to squares and resized to this side; 0: as they are.",
        at_least=0,
        at_most=4096,
    )
    crop_pct: float = fields.setting(
        1.0,
        "Share of the square's side that, resized, is --image_size: the model sees "
        "the middle. Custom for ImageNet: 0.875.",
        above=0,
        at_most=1,
    )
    sequence_length: int = fields.setting(
        128, "Texts are cut, or padded, to so many tokens.", at_least=2, at_most=65536
    )
    augment: str = fields.setting(
        "none", "Training-time augmentation.", choices=choices.AUGMENTATIONS
    )
    preprocessing: str = fields.setting(
        "auto",
        "How pixels become inputs, in keras.applications' terms; dataset: by mean and "
        "deviation of the training data; auto: as --weights' architecture wants it.",
        choices=choices.PREPROCESSINGS,
    )
    batch_size: int = fields.setting(128, "Examples of one update.", at_least=1)


@dataclasses.dataclass(frozen=True)
class Model(fields.Section):
    """What is trained, and what of it: read by `mp_loop.models`."""

    model: str = fields.setting(
        "cnn",
        "mlp, cnn, resnet9, resnet20 (any 6n+2), vit_tiny, a keras.applications "
        "name, a .keras file, keras_hub:PRESET_OR_FOLDER (for texts), or "
        "package.module:function (runs that code).",
    )
    weights: str = fields.setting(
        "",
        "Pretrained weights of --model: imagenet, or a .keras or .weights.h5 file.",
    )
    dropout: float = fields.setting(
        0.0, "Rate before the head of pretrained features.", at_least=0, below=1
    )
    freeze: str = fields.setting(
        "", "Regular expression: layers with such names are not trained."
    )
    head_epochs: int = fields.setting(
        0, "First epochs that train the last layer alone.", at_least=0
    )
    head_learning_rate: float = fields.setting(
        1e-3, "Learning rate of --head_epochs, constant.", above=0
    )
    loss: str = fields.setting(
        "sparse_categorical_crossentropy", "Keras identifier of the loss."
    )
    metric: str = fields.setting(
        "sparse_categorical_accuracy", "Keras identifier of the metric."
    )


@dataclasses.dataclass(frozen=True)
class Precision(fields.Section):
    """Which operation runs in which dtype: read by `mp_loop.precision`."""

    precision: str = fields.setting(
        "float16",
        "Type of the forward and backward pass; auto: what is fastest here.",
        choices=(*choices.PRECISIONS, "auto"),
    )
    loop: str = fields.setting(
        "custom", "custom, or keras: Keras' own mixed precision.", choices=choices.LOOPS
    )
    float32_layers: str = fields.setting(
        "", "Regular expression: layers with such names stay in float32."
    )
    keras_arithmetic: bool = fields.setting(
        False,
        "Compute every bit as Keras' mixed precision does, for comparison: 16-bit "
        "softmax and bias sums, statistics that a skip moves.",
    )
    recompute: bool = fields.setting(
        False,
        "Compute activations again in the backward pass instead of keeping them: less "
        "memory, some more time.",
    )


@dataclasses.dataclass(frozen=True)
class Scale(fields.Section):
    """The loss scale: read by `mp_loop.step.loss_scale`.

    `None` means "not given": the constant then comes from the rule
    (`mp_loop.DynamicLossScale`) or from the preset.
    """

    loss_scale: str | None = fields.setting(
        None,
        "Loss scaling; default: dynamic for float16, none otherwise.",
        choices=choices.LOSS_SCALES,
    )
    scale_preset: str = fields.setting(
        "", "Reproduce another system's dynamic rule.", choices=("", *choices.PRESETS)
    )
    initial_scale: float | None = fields.setting(
        None, "First (or static) loss scale. Dynamic default: 32768.", above=0
    )
    growth_interval: int | None = fields.setting(
        None, "Clean steps before the scale grows. Default: 2000.", at_least=1
    )
    growth_factor: float | None = fields.setting(
        None, "Growth multiplies the scale by this. Default: 2.", above=1
    )
    backoff_factor: float | None = fields.setting(
        None,
        "An overflow multiplies the scale by this. Default: 0.5.",
        above=0,
        below=1,
    )
    min_scale: float | None = fields.setting(None, "Floor of the scale.", above=0)
    max_scale: float | None = fields.setting(None, "Cap of the scale.", above=0)
    hysteresis: int | None = fields.setting(
        None, "Overflows before the scale backs off. Default: 1.", at_least=1
    )

    @property
    def constants(self) -> dict[str, float | int]:
        """The constants that were given, by argument name."""
        names = (
            "initial_scale", "growth_interval", "growth_factor",
            "backoff_factor", "min_scale", "max_scale", "hysteresis",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Optimizer(fields.Section):
    """How gradients become updates: read by `mp_loop.step.updates`."""

    optimizer: str = fields.setting("adam", "Update rule.", choices=choices.OPTIMIZERS)
    learning_rate: float = fields.setting(1e-3, "Peak learning rate.", above=0)
    momentum: float = fields.setting(
        0.9, "For --optimizer=momentum and nesterov.", at_least=0, below=1
    )
    schedule: str = fields.setting(
        "constant", "Learning rate after warm-up.", choices=choices.SCHEDULES
    )
    warmup_steps: int = fields.setting(0, "Updates of linear warm-up.", at_least=0)
    decay_at: str = fields.setting(
        "0.5,0.75", "Piecewise: fractions of the run at which the rate drops."
    )
    decay_factor: float = fields.setting(
        0.1, "Piecewise: each drop multiplies by this.", above=0, below=1
    )
    weight_decay: float = fields.setting(
        0.0,
        "Decoupled weight decay, of kernels and embeddings alone; not with adam.",
        at_least=0,
    )
    clip_norm: float = fields.setting(
        0.0, "Clip gradients to this global norm; 0: off.", at_least=0
    )
    accumulate_steps: int = fields.setting(
        1, "Micro-batches that one update is split into.", at_least=1
    )

    @property
    def decay_fractions(self) -> tuple[float, ...]:
        """`decay_at` as numbers."""
        return tuple(float(word) for word in self.decay_at.split(","))


@dataclasses.dataclass(frozen=True)
class Training(fields.Section):
    """When the training does what: read by `mp_loop.run.loop`."""

    epochs: int = fields.setting(5, "Passes over the data.", at_least=1)
    steps: int = fields.setting(0, "Total steps; 0: as --epochs says.", at_least=0)
    seed: int = fields.setting(
        0, "Initial weights and order of the data.", at_least=0, at_most=2**31 - 1
    )
    steps_per_call: int = fields.setting(
        10, "Steps inside one call of a tf.function.", at_least=1
    )
    jit_compile: str = fields.setting(
        "auto", "XLA; auto: on a GPU only.", choices=choices.JIT_COMPILE
    )
    deterministic: bool = fields.setting(
        False, "Deterministic kernels: the same run gives the same bits."
    )
    profile_steps: str = fields.setting(
        "", "A:B: TensorBoard's profiler records the steps from A on, before B."
    )
    log_every: int = fields.setting(20, "Steps between lines of metrics.", at_least=1)
    eval_every: int = fields.setting(
        0, "Steps between evaluations; 0: every epoch.", at_least=0
    )
    checkpoint_every: int = fields.setting(
        0, "Steps between checkpoints; 0: every epoch.", at_least=0
    )
    diverged_after: int = fields.setting(
        100, "Skips in a row after which the training is stuck.", at_least=1
    )
    on_stuck: str = fields.setting(
        "raise",
        "A stuck training: raise (exit code 1), warn once and go on, or stay: go on.",
        choices=choices.ON_STUCK,
    )
    rollback: int = fields.setting(
        0,
        "How often a stuck training goes back to the last good checkpoint, with a "
        "lower scale and learning rate, before --on_stuck=raise ends it.",
        at_least=0,
    )
    rollback_factor: float = fields.setting(
        0.5, "Each rollback multiplies the learning rate by this.", above=0, at_most=1
    )
    inspect_every: int = fields.setting(
        0, "Steps between looks at the numbers (numerics.jsonl); 0: none.", at_least=0
    )
    explain_skips: bool = fields.setting(
        True, "Look into skipped batches, to tell where the overflow began."
    )

    @property
    def profile_range(self) -> tuple[int, int] | None:
        """`profile_steps` as numbers, None where it is empty."""
        if not self.profile_steps:
            return None
        first, end = self.profile_steps.split(":")
        return int(first), int(end)


@dataclasses.dataclass(frozen=True)
class Parallel(fields.Section):
    """Which devices share a step: read by `mp_loop.distributed`."""

    strategy: str = fields.setting(
        "none",
        "none: one device; mirrored: all GPUs of this machine; multi_worker: those "
        "of every worker in TF_CONFIG.",
        choices=choices.STRATEGIES,
    )
    all_reduce_dtype: str = fields.setting(
        "float32",
        "How gradients of float16 weights travel between replicas.",
        choices=choices.ALL_REDUCE_DTYPES,
    )
    sync_batch_norm: bool = fields.setting(
        False,
        "Batch norm over the whole batch, not each replica's share: "
        "BatchNormalization(synchronized=True).",
    )
    worker_timeout: int = fields.setting(
        600, "Seconds to wait for the other workers at the start.", at_least=1
    )


@dataclasses.dataclass(frozen=True)
class Records(fields.Section):
    """What is kept of the run and shown: read by the commands."""

    output_dir: str = fields.setting("", "Run folder (required).")
    resume: bool = fields.setting(False, "Continue the run in --output_dir.")
    change_precision: bool = fields.setting(
        False,
        "With --resume: --precision and the flags of the loss scale may be others "
        "than before. The scale starts anew.",
    )
    keep_checkpoints: int = fields.setting(
        2, "Newest checkpoints kept, besides the best.", at_least=1
    )
    best_by: str = fields.setting(
        "eval_accuracy",
        "What the best checkpoint is best by: the highest accuracy (--metric), or the "
        "lowest loss.",
        choices=choices.BEST_BY,
    )
    quiet: bool = fields.setting(False, "Print nothing but warnings and errors.")
