"""The experiment as one frozen, validated value.

    config = Config(precision="bfloat16", epochs=3)    # ValueError if unlawful
    declare_flags(flags.FLAGS)                         # one flag per field
    config = Config.from_flags(flags.FLAGS)
    pathlib.Path("exp.flags").write_text(config.to_flagfile())

Each field is declared once, with its default, its help text and its law; the
flags, the checks and the flagfile are derived from that declaration.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

_LARGEST = 2.0**128 - 2.0**104  # of float32

PRECISIONS = ("float16", "bfloat16", "float32")
LOOPS = ("custom", "keras")
LOSS_SCALES = ("dynamic", "static", "none")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear", "piecewise")
AUGMENTATIONS = ("none", "flip_shift", "flip_crop")
PREPROCESSINGS = ("auto", "dataset", "tf", "torch", "caffe", "none")
JIT_CHOICES = ("auto", "on", "off")
ON_STUCK = ("raise", "warn", "stay")
BEST_BY = ("eval_accuracy", "eval_loss", "none")
STRATEGIES = ("none", "mirrored", "multi_worker")
ALL_REDUCE_DTYPES = ("float32", "float16")
PRESETS = (
    "",
    "keras",
    "tf_keras",
    "torch",
    "apex",
    "megatron",
    "deepspeed",
    "jmp",
    "flax",
    "fairseq",
)


def _field(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field whose metadata is its law; numbers must be finite as well."""
    law = {
        "help": help_text,
        "choices": choices,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
    }
    return dataclasses.field(default=default, metadata=law)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run.

    `None` means "not given": the loss-scale constants then come from the rule
    (`mp_loop.DynamicLossScale`) or from the preset.

    Raises:
      ValueError: a field breaks its law, or two fields contradict each other;
        the message names the flag, the value and the law.
    """

    # Data.
    dataset: str = _field(
        "fashion_mnist_mini", "TFDS data set; the default is embedded."
    )
    data_dir: str = _field("", "TFDS folder; empty: TFDS's own default.")
    image_size: int = _field(
        0,
        "Images are cropped to squares and resized to this side; 0: as they are.",
        at_least=0,
        at_most=4096,
    )
    crop_pct: float = _field(
        1.0,
        "Share of the square's side that, resized, is --image_size: the model sees "
        "the middle. Custom for ImageNet: 0.875.",
        above=0,
        at_most=1,
    )
    sequence_length: int = _field(
        128, "Texts are cut, or padded, to so many tokens.", at_least=2, at_most=65536
    )
    augment: str = _field("none", "Training-time augmentation.", choices=AUGMENTATIONS)
    preprocessing: str = _field(
        "auto",
        "How pixels become inputs, in keras.applications' terms; dataset: by mean and "
        "deviation of the training data; auto: as --weights' architecture wants it.",
        choices=PREPROCESSINGS,
    )
    batch_size: int = _field(128, "Examples of one update.", at_least=1)
    # Model.
    model: str = _field(
        "cnn",
        "mlp, cnn, resnet9, resnet20 (any 6n+2), vit_tiny, a keras.applications "
        "name, a .keras file, keras_hub:PRESET_OR_FOLDER (for texts), or "
        "package.module:function (runs that code).",
    )
    weights: str = _field(
        "",
        "Pretrained weights of --model: imagenet, or a .keras or .weights.h5 file.",
    )
    dropout: float = _field(
        0.0, "Rate before the head of pretrained features.", at_least=0, below=1
    )
    freeze: str = _field(
        "", "Regular expression: layers with such names are not trained."
    )
    head_epochs: int = _field(
        0, "First epochs that train the last layer alone.", at_least=0
    )
    head_learning_rate: float = _field(
        1e-3, "Learning rate of --head_epochs, constant.", above=0
    )
    loss: str = _field(
        "sparse_categorical_crossentropy", "Keras identifier of the loss."
    )
    metric: str = _field(
        "sparse_categorical_accuracy", "Keras identifier of the metric."
    )
    # Precision.
    precision: str = _field(
        "float16",
        "Type of the forward and backward pass; auto: what is fastest here.",
        choices=(*PRECISIONS, "auto"),
    )
    loop: str = _field(
        "custom", "custom, or keras: Keras' own mixed precision.", choices=LOOPS
    )
    float32_layers: str = _field(
        "", "Regular expression: layers with such names stay in float32."
    )
    keras_arithmetic: bool = _field(
        False,
        "Compute every bit as Keras' mixed precision does, for comparison: 16-bit "
        "softmax and bias sums, statistics that a skip moves.",
    )
    loss_scale: str | None = _field(
        None,
        "Loss scaling; default: dynamic for float16, none otherwise.",
        choices=LOSS_SCALES,
    )
    scale_preset: str = _field(
        "", "Reproduce another system's dynamic rule.", choices=PRESETS
    )
    initial_scale: float | None = _field(
        None, "First (or static) loss scale. Dynamic default: 32768.", above=0
    )
    growth_interval: int | None = _field(
        None, "Clean steps before the scale grows. Default: 2000.", at_least=1
    )
    growth_factor: float | None = _field(
        None, "Growth multiplies the scale by this. Default: 2.", above=1
    )
    backoff_factor: float | None = _field(
        None,
        "An overflow multiplies the scale by this. Default: 0.5.",
        above=0,
        below=1,
    )
    min_scale: float | None = _field(None, "Floor of the scale.", above=0)
    max_scale: float | None = _field(None, "Cap of the scale.", above=0)
    hysteresis: int | None = _field(
        None, "Overflows before the scale backs off. Default: 1.", at_least=1
    )
    recompute: bool = _field(
        False,
        "Compute activations again in the backward pass instead of keeping them: less "
        "memory, some more time.",
    )
    # Optimization.
    optimizer: str = _field("adam", "Update rule.", choices=OPTIMIZERS)
    learning_rate: float = _field(1e-3, "Peak learning rate.", above=0)
    momentum: float = _field(
        0.9, "For --optimizer=momentum and nesterov.", at_least=0, below=1
    )
    schedule: str = _field(
        "constant", "Learning rate after warm-up.", choices=SCHEDULES
    )
    warmup_steps: int = _field(0, "Updates of linear warm-up.", at_least=0)
    decay_at: str = _field(
        "0.5,0.75", "Piecewise: fractions of the run at which the rate drops."
    )
    decay_factor: float = _field(
        0.1, "Piecewise: each drop multiplies by this.", above=0, below=1
    )
    weight_decay: float = _field(
        0.0,
        "Decoupled weight decay, of kernels and embeddings alone; not with adam.",
        at_least=0,
    )
    clip_norm: float = _field(
        0.0, "Clip gradients to this global norm; 0: off.", at_least=0
    )
    accumulate_steps: int = _field(
        1, "Micro-batches that one update is split into.", at_least=1
    )
    # Run.
    epochs: int = _field(5, "Passes over the data.", at_least=1)
    steps: int = _field(0, "Total steps; 0: as --epochs says.", at_least=0)
    seed: int = _field(
        0, "Initial weights and order of the data.", at_least=0, at_most=2**31 - 1
    )
    steps_per_call: int = _field(
        10, "Steps inside one call of a tf.function.", at_least=1
    )
    jit_compile: str = _field("auto", "XLA; auto: on a GPU only.", choices=JIT_CHOICES)
    deterministic: bool = _field(
        False, "Deterministic kernels: the same run gives the same bits."
    )
    quiet: bool = _field(False, "Print nothing but warnings and errors.")
    profile_steps: str = _field(
        "", "A:B: TensorBoard's profiler records the steps from A on, before B."
    )
    # Many devices.
    strategy: str = _field(
        "none",
        "none: one device; mirrored: all GPUs of this machine; multi_worker: those "
        "of every worker in TF_CONFIG.",
        choices=STRATEGIES,
    )
    all_reduce_dtype: str = _field(
        "float32",
        "How gradients of float16 weights travel between replicas.",
        choices=ALL_REDUCE_DTYPES,
    )
    sync_batch_norm: bool = _field(
        False,
        "Batch norm over the whole batch, not each replica's share: "
        "BatchNormalization(synchronized=True).",
    )
    worker_timeout: int = _field(
        600, "Seconds to wait for the other workers at the start.", at_least=1
    )
    # Records.
    output_dir: str = _field("", "Run folder (required).")
    resume: bool = _field(False, "Continue the run in --output_dir.")
    log_every: int = _field(20, "Steps between lines of metrics.", at_least=1)
    eval_every: int = _field(
        0, "Steps between evaluations; 0: every epoch.", at_least=0
    )
    checkpoint_every: int = _field(
        0, "Steps between checkpoints; 0: every epoch.", at_least=0
    )
    keep_checkpoints: int = _field(
        2, "Newest checkpoints kept, besides the best.", at_least=1
    )
    best_by: str = _field(
        "eval_accuracy",
        "What the best checkpoint is best by: the highest accuracy (--metric), or the "
        "lowest loss.",
        choices=BEST_BY,
    )
    change_precision: bool = _field(
        False,
        "With --resume: --precision and the flags of the loss scale may be others "
        "than before. The scale starts anew.",
    )
    diverged_after: int = _field(
        100, "Skips in a row after which the training is stuck.", at_least=1
    )
    on_stuck: str = _field(
        "raise",
        "A stuck training: raise (exit code 1), warn once and go on, or stay: go on.",
        choices=ON_STUCK,
    )
    rollback: int = _field(
        0,
        "How often a stuck training goes back to the last good checkpoint, with a "
        "lower scale and learning rate, before --on_stuck=raise ends it.",
        at_least=0,
    )
    rollback_factor: float = _field(
        0.5, "Each rollback multiplies the learning rate by this.", above=0, at_most=1
    )

    # Numerics.
    inspect_every: int = _field(
        0, "Steps between looks at the numbers (numerics.jsonl); 0: none.", at_least=0
    )
    explain_skips: bool = _field(
        True, "Look into skipped batches, to tell where the overflow began."
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), field.metadata)
        _refuse_contradictions(self)

    @property
    def loss_scale_kind(self) -> str:
        """`dynamic`, `static` or `none`, the default resolved."""
        if self.loss_scale is not None:
            return self.loss_scale
        # auto may become float16.
        return "dynamic" if self.precision in ("float16", "auto") else "none"

    @property
    def decay_fractions(self) -> tuple[float, ...]:
        """`decay_at` as numbers."""
        return tuple(float(word) for word in self.decay_at.split(","))

    @property
    def profile_range(self) -> tuple[int, int] | None:
        """`profile_steps` as numbers, None where it is empty."""
        if not self.profile_steps:
            return None
        first, end = self.profile_steps.split(":")
        return int(first), int(end)

    def scale_constants(self) -> dict[str, float | int]:
        """The loss-scale constants that were given, by argument name."""
        names = (
            "initial_scale", "growth_interval", "growth_factor",
            "backoff_factor", "min_scale", "max_scale", "hysteresis",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    def at_precision(self, precision: str) -> Config:
        """Puts a precision in the place of auto.

        Where that precision does not scale the loss and --loss_scale was not given,
        the constants of the scale are dropped: they were meant for float16.
        """
        unscaled = precision != "float16" and self.loss_scale is None
        dropped = dict.fromkeys(self.scale_constants()) if unscaled else {}
        if unscaled:
            dropped["scale_preset"] = ""
        return dataclasses.replace(self, precision=precision, **dropped)

    def to_flagfile(self) -> str:
        """Flags that replay this run, one a line; what is None is left out."""
        lines = []
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool):
                lines.append(f"--{name}" if value else f"--no{name}")
            elif value is not None:
                lines.append(f"--{name}={value}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_flags(cls, flag_values: Any) -> Config:
        """Reads parsed absl flags declared by `declare_flags`."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(flag_values, name) for name in names})


def declare_flags(flag_values: Any) -> None:
    """Declares one absl flag for each field of `Config` on `flag_values`."""
    from absl import flags  # Commands own the flags; nothing else needs absl.

    for field in dataclasses.fields(Config):
        text, default = field.metadata["help"], field.default
        if field.metadata["choices"]:
            text += f" One of: {', '.join(filter(None, field.metadata['choices']))}."
        define = flags.DEFINE_string
        if isinstance(default, bool):
            define = flags.DEFINE_bool
        elif field.type.startswith("int"):
            define = flags.DEFINE_integer
        elif field.type.startswith("float"):
            define = flags.DEFINE_float
        define(field.name, default, text, flag_values=flag_values)


def _check(name: str, value: Any, law: Any) -> None:
    """Raises ValueError if `value` breaks the law of the field `name`."""
    if value is None:
        return
    said = f"--{name} ({value})"
    if law["choices"] is not None and value not in law["choices"]:
        known = ", ".join(filter(None, law["choices"]))
        raise ValueError(f"{said} must be one of: {known}.")
    if isinstance(value, str) and re.search(r"[\r\n]", value):
        raise ValueError(f"--{name} ({value!r}) must be a single line.")
    if isinstance(value, (int, float)) and not math.isfinite(value):
        raise ValueError(f"{said} must be finite.")
    if isinstance(value, float) and abs(value) > _LARGEST:
        raise ValueError(f"{said} must be at most {_LARGEST:g}, as float32 is.")
    if law["at_least"] is not None and value < law["at_least"]:
        raise ValueError(f"{said} must be at least {law['at_least']}.")
    if law["at_most"] is not None and value > law["at_most"]:
        raise ValueError(f"{said} must be at most {law['at_most']}.")
    if law["above"] is not None and value <= law["above"]:
        raise ValueError(f"{said} must be greater than {law['above']}.")
    if law["below"] is not None and value >= law["below"]:
        raise ValueError(f"{said} must be less than {law['below']}.")


def _refuse_contradictions(config: Config) -> None:
    """Raises ValueError where two fields cannot both hold."""
    constants = config.scale_constants()
    kind = config.loss_scale_kind
    if config.scale_preset and kind != "dynamic":
        raise ValueError(
            f"--scale_preset ({config.scale_preset}) needs dynamic loss scaling, "
            f"not {kind}: pass --loss_scale=dynamic."
        )
    allowed = {"dynamic": set(constants), "static": {"initial_scale"}, "none": set()}
    for name in constants:
        if name not in allowed[kind]:
            raise ValueError(
                f"--{name} ({constants[name]}) has no meaning when the loss "
                f"scaling is {kind} (--precision={config.precision})."
            )
    if kind == "static" and "initial_scale" not in constants:
        raise ValueError("--loss_scale (static) needs --initial_scale.")
    if config.rollback and config.on_stuck != "raise":
        raise ValueError(
            f"--rollback ({config.rollback}) needs --on_stuck=raise, not "
            f"{config.on_stuck}."
        )
    many = config.strategy != "none"
    if config.inspect_every and many:
        raise ValueError(
            f"--inspect_every ({config.inspect_every}) is not available with "
            f"--strategy={config.strategy}."
        )
    if config.change_precision and not config.resume:
        raise ValueError("--change_precision (True) needs --resume.")
    if config.loop == "keras":
        _refuse_what_keras_lacks(config)
    if config.keras_arithmetic and config.float32_layers:
        raise ValueError(
            f"--float32_layers ({config.float32_layers}) contradicts "
            "--keras_arithmetic."
        )
    if config.batch_size % config.accumulate_steps:
        raise ValueError(
            f"--accumulate_steps ({config.accumulate_steps}) must divide "
            f"--batch_size ({config.batch_size})."
        )
    _refuse_what_strategies_lack(config)
    if config.weight_decay and config.optimizer == "adam":
        raise ValueError(
            f"--weight_decay ({config.weight_decay}) needs --optimizer=adamw, not adam."
        )
    try:
        fractions = config.decay_fractions
        lawful = all(0 < f < 1 for f in fractions) and all(
            a < b for a, b in zip(fractions, fractions[1:], strict=False)
        )
    except ValueError:
        lawful = False
    if not lawful:
        raise ValueError(
            f"--decay_at ({config.decay_at}) must be rising fractions between 0 "
            "and 1, parted by commas."
        )
    if config.profile_steps:
        numbers = re.fullmatch(r"(\d{1,9}):(\d{1,9})", config.profile_steps)
        if not numbers or int(numbers[1]) >= int(numbers[2]):
            raise ValueError(
                f"--profile_steps ({config.profile_steps}) must be A:B, two steps, "
                "the first before the second."
            )
    for name in ("float32_layers", "freeze"):
        pattern = getattr(config, name)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"--{name} ({pattern}) must be a regular expression: {error}."
            ) from None
    if config.crop_pct != 1 and not config.image_size:
        raise ValueError(f"--crop_pct ({config.crop_pct}) needs --image_size.")
    if config.head_epochs and not config.steps and config.head_epochs >= config.epochs:
        raise ValueError(
            f"--head_epochs ({config.head_epochs}) must be fewer than --epochs "
            f"({config.epochs})."
        )


def _refuse_what_strategies_lack(config: Config) -> None:
    """Names the first flag that contradicts --strategy or its absence."""
    many = config.strategy != "none"
    if many and config.loop == "keras":
        raise ValueError(
            f"--strategy ({config.strategy}) is not available with --loop=keras."
        )
    if many and config.keras_arithmetic:
        raise ValueError(
            f"--strategy ({config.strategy}) contradicts --keras_arithmetic, which is "
            "for one device."
        )
    if many and config.jit_compile == "on":
        raise ValueError(
            f"--jit_compile (on) is not available with --strategy={config.strategy}."
        )
    if config.rollback and config.strategy == "multi_worker":
        raise ValueError(
            f"--rollback ({config.rollback}) is not available with "
            "--strategy=multi_worker, whose chief alone has the checkpoints."
        )
    if config.all_reduce_dtype == "float16" and not (
        many and config.precision == "float16"
    ):
        raise ValueError(
            "--all_reduce_dtype (float16) needs --precision=float16, whose gradients "
            "are scaled for it, and a --strategy."
        )
    if config.sync_batch_norm and config.accumulate_steps > 1:
        raise ValueError(
            f"--sync_batch_norm (True) is not available with --accumulate_steps "
            f"({config.accumulate_steps}) above 1."
        )


def _refuse_what_keras_lacks(config: Config) -> None:
    """Names the first flag that Keras' LossScaleOptimizer cannot express."""
    keras_constants = {"initial_scale", "growth_interval"}
    for name, value in config.scale_constants().items():
        if name not in keras_constants or config.loss_scale_kind == "static":
            raise ValueError(
                f"--{name} ({value}) cannot be expressed by Keras' "
                "LossScaleOptimizer (--loop=keras): it takes --initial_scale and "
                "--growth_interval only."
            )
    if config.scale_preset not in ("", "keras"):
        raise ValueError(
            f"--scale_preset ({config.scale_preset}) cannot be expressed by Keras' "
            "LossScaleOptimizer (--loop=keras)."
        )
    if config.float32_layers:
        raise ValueError(
            f"--float32_layers ({config.float32_layers}) is not available with "
            "--loop=keras."
        )
    names = (
        "keras_arithmetic", "recompute", "change_precision", "rollback",
        "inspect_every",
    )  # fmt: skip
    for name in names:
        if getattr(config, name):
            raise ValueError(
                f"--{name} ({getattr(config, name)}) is for --loop=custom."
            )
    if config.accumulate_steps > 1:
        raise ValueError(
            f"--accumulate_steps ({config.accumulate_steps}) is not available with "
            "--loop=keras: under LossScaleOptimizer every micro-batch would be "
            "checked alone."
        )
