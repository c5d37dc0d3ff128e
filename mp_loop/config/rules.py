"""Contradictions between settings: a table, and what does not fit into one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace


@dataclasses.dataclass(frozen=True)
class Rule:
    """One contradiction.

    Attributes:
      broken: tells it from all settings, by name.
      message: what the user reads, with settings' names in braces.
    """

    broken: Callable[[SimpleNamespace], object]
    message: str


# Metric and task whose value is made of the mean loss.
_OF_THE_LOSS = (
    ("auto", "causal_lm"),
    ("perplexity", "causal_lm"),
    ("perplexity", "classification"),
    ("perplexity", "multilabel"),
    ("perplexity", "regression"),
    ("perplexity", "segmentation"),
)

# Kinds of local data for classification.
_WITH_LABELS = ("folder:", "npz:", "csv:", "jsonl:", "module:")
_TABLES = ("csv:", "jsonl:")
RULES = (
    # The loss scale.
    Rule(
        lambda s: s.scale_preset and s.loss_scale_kind != "dynamic",
        "--scale_preset ({scale_preset}) needs dynamic loss scaling, not "
        "{loss_scale_kind}: pass --loss_scale=dynamic.",
    ),
    Rule(
        lambda s: s.loss_scale_kind == "static" and s.initial_scale is None,
        "--loss_scale (static) needs --initial_scale.",
    ),
    # The training.
    Rule(
        lambda s: s.rollback and s.on_stuck != "raise",
        "--rollback ({rollback}) needs --on_stuck=raise, not {on_stuck}.",
    ),
    Rule(
        lambda s: s.early_stopping and s.best_by == "none",
        "--early_stopping ({early_stopping}) needs --best_by, not none.",
    ),
    Rule(
        lambda s: s.change_precision and not s.resume,
        "--change_precision ({change_precision}) needs --resume.",
    ),
    Rule(
        lambda s: s.change_schedule and not s.resume,
        "--change_schedule ({change_schedule}) needs --resume.",
    ),
    Rule(
        lambda s: s.head_epochs and not s.steps and s.head_epochs >= s.epochs,
        "--head_epochs ({head_epochs}) must be fewer than --epochs ({epochs}).",
    ),
    Rule(
        lambda s: s.profile_steps and not _are_two_steps(s.profile_steps),
        "--profile_steps ({profile_steps}) must be A:B, two steps, the first before "
        "the second.",
    ),
    # Regression.
    Rule(
        lambda s: s.task == "regression" and "crossentropy" in s.loss,
        "--loss ({loss}) is for classes; --task=regression needs one of a difference, "
        "such as mse, mae or huber.",
    ),
    Rule(
        lambda s: s.task == "regression" and (s.label_smoothing or s.class_weights),
        "--label_smoothing ({label_smoothing}) and --class_weights ({class_weights}) "
        "are for classes, not --task=regression.",
    ),
    # Several labels.
    Rule(
        lambda s: s.task == "multilabel" and s.class_weights,
        "--class_weights ({class_weights}) is for examples of one class, not "
        "--task=multilabel.",
    ),
    Rule(
        lambda s: (
            s.task == "multilabel"
            and s.label_smoothing
            and s.trained_by != "binary_crossentropy"
        ),
        "--label_smoothing ({label_smoothing}) is of --loss=binary_crossentropy for "
        "--task=multilabel, not {trained_by}.",
    ),
    # Segmentation.
    Rule(
        lambda s: s.task != "segmentation" and s.ignore_label >= 0,
        "--ignore_label ({ignore_label}) is for --task=segmentation.",
    ),
    Rule(
        lambda s: s.task == "segmentation" and s.rand_augment,
        "--rand_augment ({rand_augment}) is not for --task=segmentation: it would move "
        "images away from their masks.",
    ),
    Rule(
        lambda s: s.task == "segmentation" and (s.dropout or s.weights == "imagenet"),
        "--dropout ({dropout}) and --weights ({weights}) are for a new head, which "
        "--task=segmentation does not make.",
    ),
    # Language models.
    Rule(
        lambda s: s.task != "causal_lm" and s.dataset.startswith("text:"),
        "--dataset ({dataset}) is text without labels: pass --task=causal_lm.",
    ),
    Rule(
        lambda s: s.task == "causal_lm" and s.dataset.startswith(_WITH_LABELS),
        "--dataset ({dataset}) has labels; --task=causal_lm reads texts without: "
        "text:PATH, or a TFDS data set.",
    ),
    Rule(
        lambda s: s.input_columns and not s.dataset.startswith(_TABLES),
        "--input_columns ({input_columns}) is for csv:PATH and jsonl:PATH, not for "
        "--dataset={dataset}.",
    ),
    Rule(
        lambda s: (
            s.trained_by != "sparse_categorical_crossentropy"
            and (s.metric, s.task) in _OF_THE_LOSS
        ),
        "--loss ({trained_by}) must be sparse_categorical_crossentropy, of which "
        "perplexity is made; or choose another --metric.",
    ),
    Rule(
        lambda s: (
            s.task != "multilabel"
            and (s.label_smoothing or s.class_weights)
            and s.trained_by != "sparse_categorical_crossentropy"
        ),
        "--label_smoothing ({label_smoothing}) and --class_weights ({class_weights}) "
        "are of --loss=sparse_categorical_crossentropy, not {trained_by}.",
    ),
    Rule(
        lambda s: (
            (s.mixup or s.cutmix)
            and (s.task, s.trained_by)
            != ("classification", "sparse_categorical_crossentropy")
        ),
        "--mixup ({mixup}) and --cutmix ({cutmix}) are for --task=classification with "
        "--loss=sparse_categorical_crossentropy, not {task} with {trained_by}.",
    ),
    Rule(
        lambda s: (s.mixup or s.cutmix) and s.batch_size % 2,
        "--batch_size ({batch_size}) must be even: --mixup and --cutmix mix examples "
        "in pairs.",
    ),
    Rule(
        lambda s: s.task == "causal_lm" and s.class_weights,
        "--class_weights ({class_weights}) is for classes, not --task=causal_lm.",
    ),
    Rule(
        lambda s: s.task == "causal_lm" and s.head_epochs,
        "--head_epochs ({head_epochs}) is for a new last layer, which "
        "--task=causal_lm does not make.",
    ),
    Rule(
        lambda s: s.lora_rank and s.head_epochs,
        "--head_epochs ({head_epochs}) contradicts --lora_rank ({lora_rank}).",
    ),
    Rule(
        lambda s: s.lora_rank and s.keras_arithmetic,
        "--lora_rank ({lora_rank}) is not available with --keras_arithmetic: a copy of "
        "a layer under Keras' policy has no adapter.",
    ),
    # Keras' arithmetic and Keras' loop.
    Rule(
        lambda s: s.keras_arithmetic and s.float32_layers,
        "--float32_layers ({float32_layers}) contradicts --keras_arithmetic.",
    ),
    Rule(
        lambda s: s.loop == "keras" and s.scale_preset not in ("", "keras"),
        "--scale_preset ({scale_preset}) cannot be expressed by Keras' "
        "LossScaleOptimizer (--loop=keras).",
    ),
    Rule(
        lambda s: s.loop == "keras" and s.accumulate_steps > 1,
        "--accumulate_steps ({accumulate_steps}) is not available with --loop=keras: "
        "under LossScaleOptimizer every micro-batch would be checked alone.",
    ),
    # The optimizer.
    Rule(
        lambda s: s.batch_size % s.accumulate_steps,
        "--accumulate_steps ({accumulate_steps}) must divide --batch_size "
        "({batch_size}).",
    ),
    Rule(
        lambda s: s.weight_decay and s.optimizer == "adam",
        "--weight_decay ({weight_decay}) needs --optimizer=adamw, not adam.",
    ),
    Rule(
        lambda s: not _are_rising_fractions(s.decay_at),
        "--decay_at ({decay_at}) must be rising fractions between 0 and 1, "
        "comma-separated.",
    ),
    # Several devices.
    Rule(
        lambda s: s.strategy != "none" and s.inspect_every,
        "--inspect_every ({inspect_every}) is not available with "
        "--strategy={strategy}.",
    ),
    Rule(
        lambda s: s.strategy != "none" and s.loop == "keras",
        "--strategy ({strategy}) is not available with --loop=keras.",
    ),
    Rule(
        lambda s: s.strategy != "none" and s.keras_arithmetic,
        "--strategy ({strategy}) contradicts --keras_arithmetic, which is for one "
        "device.",
    ),
    Rule(
        lambda s: s.strategy == "multi_worker" and s.rollback,
        "--rollback ({rollback}) is not available with --strategy=multi_worker, whose "
        "chief alone has the checkpoints.",
    ),
    Rule(
        lambda s: (
            s.all_reduce_dtype == "float16"
            and (s.strategy == "none" or s.precision != "float16")
        ),
        "--all_reduce_dtype (float16) needs --precision=float16, whose gradients are "
        "scaled for it, and a --strategy.",
    ),
    Rule(
        lambda s: s.sync_batch_norm and s.accumulate_steps > 1,
        "--sync_batch_norm ({sync_batch_norm}) is not available with "
        "--accumulate_steps ({accumulate_steps}) above 1.",
    ),
    # The data.
    Rule(
        lambda s: s.crop_pct != 1 and not s.image_size,
        "--crop_pct ({crop_pct}) needs --image_size.",
    ),
)
# What only our own loop can do.
_CUSTOM_LOOP = (
    "float32_layers", "keras_arithmetic", "recompute", "change_precision", "rollback",
    "inspect_every", "lora_rank",
)  # fmt: skip
_PATTERNS = ("float32_layers", "freeze")


def check(settings: SimpleNamespace) -> None:
    """Raises ValueError, with one line, where settings contradict each other.

    Args:
      settings: all of them by name, with `loss_scale_kind` and `constants`, those of
        the loss scale that were given.
    """
    for message in _messages(settings):
        raise ValueError(message)


def _messages(settings: SimpleNamespace) -> Iterator[str]:
    for rule in RULES:
        if rule.broken(settings):
            yield rule.message.format(**vars(settings))
    yield from _useless_constants(settings)
    if settings.loop == "keras":
        yield from _custom_loop_only(settings)
    for name in _PATTERNS:
        pattern = getattr(settings, name)
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"--{name} ({pattern}) must be a regular expression: {error}."


def _useless_constants(settings: SimpleNamespace) -> Iterator[str]:
    """Constants of a loss scale that this kind of loss scale does not have."""
    kind, constants = settings.loss_scale_kind, settings.constants
    used = {"dynamic": set(constants), "static": {"initial_scale"}, "none": set()}
    for name, value in constants.items():
        if name not in used[kind]:
            yield (
                f"--{name} ({value}) has no meaning when the loss scaling is {kind} "
                f"(--precision={settings.precision})."
            )


def _custom_loop_only(settings: SimpleNamespace) -> Iterator[str]:
    """What Keras' loop, with its LossScaleOptimizer, does not have."""
    static = settings.loss_scale_kind == "static"
    for name, value in settings.constants.items():
        if static or name not in ("initial_scale", "growth_interval"):
            yield (
                f"--{name} ({value}) cannot be expressed by Keras' "
                "LossScaleOptimizer (--loop=keras): it takes --initial_scale and "
                "--growth_interval only."
            )
    for name in _CUSTOM_LOOP:
        if value := getattr(settings, name):
            yield f"--{name} ({value}) is not available with --loop=keras."


def _are_rising_fractions(text: str) -> bool:
    try:
        edges = [0.0, *map(float, text.split(",")), 1.0]
    except ValueError:
        return False
    return all(low < high for low, high in zip(edges, edges[1:], strict=False))


def _are_two_steps(text: str) -> bool:
    numbers = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    return bool(numbers) and int(numbers[1]) < int(numbers[2])
