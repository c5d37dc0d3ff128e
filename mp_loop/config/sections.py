"""The settings in sections; each section is read by one part of the package.

Each setting is declared once, with its default, its help text and its valid values.
Its name is also the name of its flag, unique over all sections. Those of how a run goes
are in `run_sections`.
"""

from __future__ import annotations

import dataclasses

from mp_loop.config import choices, fields


@dataclasses.dataclass(frozen=True)
class Data(fields.Section):
    """What is trained on: read by `mp_loop.data`."""

    dataset: str = fields.setting(
        "fashion_mnist_mini",
        "TFDS data set, the default being part of this package; folder:PATH, images "
        "in a folder for each class, or, for --task=segmentation, in images/ with "
        "their masks in masks/; array_record:PATH, images that `python -m "
        "mp_loop.convert` has written; npz:PATH, arrays x_train, y_train, x_test, "
        "y_test; csv:PATH or jsonl:PATH, a table of texts, numbers or names of image "
        "files; module:package.module:function, which returns arrays (runs that "
        "code); or text:PATH, a file of text or a folder of .txt files, for "
        "--task=causal_lm.",
    )
    data_dir: str = fields.setting(
        "", "Folder of TFDS data sets; empty: TFDS's default."
    )
    image_size: int = fields.setting(
        0,
        "Images are cropped to squares and resized to this side length; 0: unchanged.",
        at_least=0,
        at_most=4096,
    )
    crop_pct: float = fields.setting(
        1.0,
        "Side of the central part that the model sees, relative to the whole "
        "square; that part is resized to --image_size. Usual for ImageNet: "
        "0.875.",
        above=0,
        at_most=1,
    )
    sequence_length: int = fields.setting(
        128,
        "Tokens of an example. classification: texts are cut or padded to them; "
        "causal_lm: texts are packed into them, one after the other.",
        at_least=2,
        at_most=65536,
    )
    held_out: float = fields.setting(
        0.1,
        "Share of the texts of --task=causal_lm that is kept for evaluation where "
        "there is no test split: the last of them.",
        above=0,
        below=1,
    )
    validation_fraction: float = fields.setting(
        0.1,
        "Share of the examples that is kept for evaluation where local files have no "
        "test split: by a hash of each one's name, so that a new example moves no "
        "other.",
        above=0,
        below=1,
    )
    input_columns: str = fields.setting(
        "",
        "Columns of a table that are the inputs, comma-separated; empty: all but "
        "--label_column.",
    )
    label_column: str = fields.setting(
        "label",
        "Column of a table that holds the class; of --task=regression the columns that "
        "hold the targets, of --task=multilabel those that hold 0 or 1 for a class "
        "each, comma-separated (or one column of jsonl, of lists of names).",
    )
    ignore_label: int = fields.setting(
        -1,
        "Pixels of --task=segmentation whose mask holds this number count in neither "
        "loss nor metric; -1: all count.",
        at_least=-1,
        at_most=255,
    )
    skip_bad_examples: bool = fields.setting(
        False,
        "Leave out examples of local files that cannot be used, with a warning that "
        "counts and names them; otherwise they are refused.",
    )
    max_data_gib: float = fields.setting(
        4.0,
        "Most GiB of decoded images that are held in memory: those of a folder beyond "
        "it are read as they are needed.",
        above=0,
    )
    augment: str = fields.setting(
        "none", "Training-time augmentation.", choices=choices.AUGMENTATIONS
    )
    max_shift: int = fields.setting(
        4,
        "Pixels by which --augment=flip_shift moves images at most.",
        at_least=0,
    )
    rand_augment: int = fields.setting(
        0,
        "Magnitude of RandAugment, two random changes of each training image; usual: "
        "9. 0: none.",
        at_least=0,
        at_most=choices.MAX_MAGNITUDE,
    )
    mixup: float = fields.setting(
        0.0,
        "Alpha of MixUp, which blends training images and their labels in pairs; "
        "usual: 0.2. 0: none.",
        at_least=0,
        at_most=1000,
    )
    cutmix: float = fields.setting(
        0.0,
        "Alpha of CutMix, which pastes a part of one training image into another; "
        "usual: 1. With --mixup each is used for half of the images. 0: none.",
        at_least=0,
        at_most=1000,
    )
    preprocessing: str = fields.setting(
        "auto",
        "How pixels become inputs. tf, torch, caffe: as in "
        "keras.applications; dataset: standardized with the mean and standard "
        "deviation of the training data; auto: as the architecture of "
        "--weights requires, or else dataset.",
        choices=choices.PREPROCESSINGS,
    )
    batch_size: int = fields.setting(128, "Examples per update.", at_least=1)


@dataclasses.dataclass(frozen=True)
class Model(fields.Section):
    """What is trained, and what of it: read by `mp_loop.models`."""

    task: str = fields.setting(
        "classification",
        "classification: of images, texts or rows; multilabel: several classes of "
        "each, or none; segmentation: of an image's pixels; regression: numbers of "
        "them; causal_lm: the next token of texts.",
        choices=choices.TASKS,
    )
    model: str = fields.setting(
        "cnn",
        "mlp, cnn, resnet9, resnet20 (any 6n+2), vit_tiny, a keras.applications "
        "name, a .keras file, keras_hub:PRESET_OR_FOLDER (for texts), unet (for "
        "--task=segmentation), small_decoder (for causal_lm), or "
        "package.module:function (runs that code).",
    )
    weights: str = fields.setting(
        "",
        "Pretrained weights of --model: imagenet, or a .keras or .weights.h5 file.",
    )
    dropout: float = fields.setting(
        0.0,
        "Dropout rate before the new head of a pretrained model.",
        at_least=0,
        below=1,
    )
    freeze: str = fields.setting(
        "", "Regular expression; layers with a matching name are not trained."
    )
    lora_rank: int = fields.setting(
        0,
        "Rank of low-rank adapters of the attention's query and value kernels, which "
        "are trained in place of the model's own weights; 0: none.",
        at_least=0,
        at_most=65536,
    )
    head_epochs: int = fields.setting(
        0, "Epochs at the start that train only the last layer.", at_least=0
    )
    head_learning_rate: float = fields.setting(
        1e-3, "Constant learning rate of --head_epochs.", above=0
    )
    loss: str = fields.setting(
        "auto",
        "Keras identifier of the loss. auto: mse for --task=regression, "
        "binary_crossentropy for multilabel, else sparse_categorical_crossentropy.",
    )
    label_smoothing: float = fields.setting(
        0.0,
        "Part of each label's weight that training spreads over all classes; of "
        "multilabel over yes and no.",
        at_least=0,
        below=1,
    )
    class_weights: str = fields.setting(
        "",
        "Weights of classes in the training loss: NAME:WEIGHT, comma-separated, others "
        "being 1; or balanced, by how rare they are.",
    )
    metric: str = fields.setting(
        "auto",
        "Keras identifier of the metric, or perplexity. auto: perplexity for "
        "--task=causal_lm, mean_absolute_error for regression, auc (the mean AUROC of "
        "the classes) for multilabel, mean_iou for segmentation, else "
        "sparse_categorical_accuracy.",
    )

    @property
    def trained_by(self) -> str:
        """`loss`, auto resolved."""
        if self.loss != "auto":
            return self.loss
        by_task = {"regression": "mse", "multilabel": "binary_crossentropy"}
        return by_task.get(self.task, "sparse_categorical_crossentropy")

    @property
    def measured_by(self) -> str:
        """`metric`, auto resolved."""
        if self.metric != "auto":
            return self.metric
        by_task = {
            "causal_lm": "perplexity",
            "regression": "mean_absolute_error",
            "multilabel": "auc",
            "segmentation": "mean_iou",
        }
        return by_task.get(self.task, "sparse_categorical_accuracy")


@dataclasses.dataclass(frozen=True)
class Precision(fields.Section):
    """Which operation runs in which dtype: read by `mp_loop.precision`."""

    precision: str = fields.setting(
        "float16",
        "Dtype of the forward and backward pass; auto: the fastest on this machine.",
        choices=(*choices.PRECISIONS, "auto"),
    )
    loop: str = fields.setting(
        "custom",
        "custom: this package's step; keras: Keras' own mixed precision.",
        choices=choices.LOOPS,
    )
    float32_layers: str = fields.setting(
        "", "Regular expression; layers with a matching name stay in float32."
    )
    keras_arithmetic: bool = fields.setting(
        False,
        "Compute every bit as Keras' mixed precision does, for comparison: "
        "softmax and bias sums in 16 bits, batch-norm statistics updated by "
        "skipped steps.",
    )
    recompute: bool = fields.setting(
        False,
        "Recompute activations in the backward pass instead of storing them: "
        "less memory, more time.",
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
        "",
        "System whose dynamic loss-scale rule is reproduced.",
        choices=("", *choices.PRESETS),
    )
    initial_scale: float | None = fields.setting(
        None, "Initial (or static) loss scale. Dynamic default: 32768.", above=0
    )
    growth_interval: int | None = fields.setting(
        None,
        "Steps without overflow before the scale grows. Default: 2000.",
        at_least=1,
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
    min_scale: float | None = fields.setting(None, "Lower bound of the scale.", above=0)
    max_scale: float | None = fields.setting(None, "Upper bound of the scale.", above=0)
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

    optimizer: str = fields.setting(
        "adam",
        "sgd, momentum, nesterov, adam, adamw, or another optimizer of Keras, such as "
        "lion.",
    )
    learning_rate: float = fields.setting(1e-3, "Peak learning rate.", above=0)
    momentum: float = fields.setting(
        0.9, "For --optimizer=momentum and nesterov.", at_least=0, below=1
    )
    schedule: str = fields.setting(
        "constant", "Learning rate after warm-up.", choices=choices.SCHEDULES
    )
    warmup_steps: int = fields.setting(0, "Updates of linear warm-up.", at_least=0)
    decay_at: str = fields.setting(
        "0.5,0.75",
        "Piecewise: comma-separated fractions of the run at which the rate drops.",
    )
    decay_factor: float = fields.setting(
        0.1, "Piecewise: each drop multiplies by this.", above=0, below=1
    )
    weight_decay: float = fields.setting(
        0.0,
        "Decoupled weight decay, only of kernels and embeddings; not with adam.",
        at_least=0,
    )
    clip_norm: float = fields.setting(
        0.0, "Clip gradients to this global norm; 0: off.", at_least=0
    )
    accumulate_steps: int = fields.setting(1, "Micro-batches per update.", at_least=1)
    ema: float = fields.setting(
        0.0,
        "Decay of a moving average of the weights, which is then what is evaluated and "
        "what model.keras holds; 0: none.",
        at_least=0,
        below=1,
    )

    @property
    def decay_fractions(self) -> tuple[float, ...]:
        """`decay_at` as numbers."""
        return tuple(float(word) for word in self.decay_at.split(","))
