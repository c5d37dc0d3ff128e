"""Contradictions between settings."""

import pytest

from mp_loop.config import settings

REFUSED = {
    "preset_without_scaling": (
        {"precision": "float32", "scale_preset": "torch"},
        "--scale_preset (torch) needs dynamic loss scaling, not none",
    ),
    "constant_without_scaling": (
        {"precision": "bfloat16", "growth_interval": 5},
        "--growth_interval (5) has no meaning when the loss scaling is none",
    ),
    "static_needs_a_scale": (
        {"loss_scale": "static"},
        "--loss_scale (static) needs --initial_scale.",
    ),
    "keras_has_no_floor": (
        {"loop": "keras", "min_scale": 1.0},
        "--min_scale (1.0) cannot be expressed by Keras' LossScaleOptimizer",
    ),
    "keras_has_no_growth_factor": (
        {"loop": "keras", "growth_factor": 4.0},
        "--growth_factor (4.0) cannot be expressed by Keras' LossScaleOptimizer",
    ),
    "keras_preset": (
        {"loop": "keras", "scale_preset": "flax"},
        "--scale_preset (flax) cannot be expressed",
    ),
    "keras_islands": (
        {"loop": "keras", "float32_layers": "x"},
        "--float32_layers (x) is not available with --loop=keras.",
    ),
    "keras_accumulation": (
        {"loop": "keras", "accumulate_steps": 2},
        "--accumulate_steps (2) is not available with --loop=keras",
    ),
    "a loss of classes": (
        {"task": "regression", "loss": "binary_crossentropy"},
        "--loss (binary_crossentropy) is for classes; --task=regression needs one of a",
    ),
    "smoothing of numbers": (
        {"task": "regression", "label_smoothing": 0.1},
        "--label_smoothing (0.1) and --class_weights () are for classes",
    ),
    "weights of classes of numbers": (
        {"task": "regression", "class_weights": "balanced"},
        "--label_smoothing (0.0) and --class_weights (balanced) are for classes",
    ),
    "weights of several labels": (
        {"task": "multilabel", "class_weights": "balanced"},
        "--class_weights (balanced) is for examples of one class, not --task=multi",
    ),
    "smoothing of several labels": (
        {"task": "multilabel", "label_smoothing": 0.1, "loss": "bce"},
        "--label_smoothing (0.1) is of --loss=binary_crossentropy for --task=multi",
    ),
    "perplexity of several labels": (
        {"task": "multilabel", "metric": "perplexity"},
        "--loss (binary_crossentropy) must be sparse_categorical_crossentropy, of",
    ),
    "pixels of images that are ignored": (
        {"ignore_label": 3},
        "--ignore_label (3) is for --task=segmentation.",
    ),
    "images that leave their masks": (
        {"task": "segmentation", "rand_augment": 9},
        "--rand_augment (9) is not for --task=segmentation",
    ),
    "a head of pixels": (
        {"task": "segmentation", "dropout": 0.1},
        "--dropout (0.1) and --weights () are for a new head, which",
    ),
    "mixed masks": (
        {"task": "segmentation", "mixup": 0.2},
        "--mixup (0.2) and --cutmix (0.0) are for --task=classification",
    ),
    "mixed numbers": (
        {"task": "regression", "cutmix": 1.0},
        "--mixup (0.0) and --cutmix (1.0) are for --task=classification with --loss=sp",
    ),
    "one without a neighbour": (
        {"mixup": 0.2, "batch_size": 5},
        "--batch_size (5) must be even: --mixup and --cutmix mix examples in pairs.",
    ),
    "perplexity of numbers": (
        {"task": "regression", "metric": "perplexity"},
        "--loss (mse) must be sparse_categorical_crossentropy, of which perplexity",
    ),
    "columns of what has none": (
        {"input_columns": "a"},
        "--input_columns (a) is for csv:PATH and jsonl:PATH, not for --dataset=fashion",
    ),
    "labels for a language model": (
        {"dataset": "folder:a", "task": "causal_lm", "model": "small_decoder"},
        "--dataset (folder:a) has labels; --task=causal_lm reads texts without",
    ),
    "texts without labels": (
        {"dataset": "text:books"},
        "--dataset (text:books) is text without labels: pass --task=causal_lm.",
    ),
    "perplexity of another loss": (
        {"task": "causal_lm", "loss": "mse"},
        "--loss (mse) must be sparse_categorical_crossentropy, of which perplexity",
    ),
    "a head of tokens": (
        {"task": "causal_lm", "head_epochs": 1},
        "--head_epochs (1) is for a new last layer",
    ),
    "a head and adapters": (
        {"lora_rank": 2, "head_epochs": 1},
        "--head_epochs (1) contradicts --lora_rank (2).",
    ),
    "adapters in Keras' loop": (
        {"lora_rank": 2, "loop": "keras"},
        "--lora_rank (2) is not available with --loop=keras.",
    ),
    "adapters in Keras' arithmetic": (
        {"lora_rank": 2, "keras_arithmetic": True},
        "--lora_rank (2) is not available with --keras_arithmetic",
    ),
    "uneven_split": (
        {"batch_size": 10, "accumulate_steps": 3},
        "--accumulate_steps (3) must divide --batch_size (10).",
    ),
    "decay_of_adam": (
        {"weight_decay": 0.1},
        "--weight_decay (0.1) needs --optimizer=adamw, not adam.",
    ),
    "strategy of keras": (
        {"strategy": "mirrored", "loop": "keras"},
        "--strategy (mirrored) is not available with --loop=keras.",
    ),
    "strategy in Keras' arithmetic": (
        {"strategy": "mirrored", "keras_arithmetic": True},
        "--strategy (mirrored) contradicts --keras_arithmetic",
    ),
    "rollback of many workers": (
        {"strategy": "multi_worker", "rollback": 1},
        "--rollback (1) is not available with --strategy=multi_worker",
    ),
    "float16 messages of float32": (
        {"strategy": "mirrored", "all_reduce_dtype": "float16", "precision": "float32"},
        "--all_reduce_dtype (float16) needs --precision=float16",
    ),
    "messages to nobody": (
        {"all_reduce_dtype": "float16"},
        "--all_reduce_dtype (float16) needs --precision=float16",
    ),
    "synchronized micro-batches": (
        {"strategy": "mirrored", "sync_batch_norm": True, "accumulate_steps": 2},
        "--sync_batch_norm (True) is not available with --accumulate_steps (2)",
    ),
    "fractions": ({"decay_at": "0.5,0.5"}, "--decay_at (0.5,0.5) must be rising"),
    "no_fractions": ({"decay_at": "half"}, "--decay_at (half) must be rising"),
    "no stretch": ({"profile_steps": "5"}, "--profile_steps (5) must be A:B"),
    "empty stretch": ({"profile_steps": "5:5"}, "--profile_steps (5:5) must be A:B"),
    "turned": ({"profile_steps": "8:4"}, "--profile_steps (8:4) must be A:B"),
    "pattern": ({"float32_layers": "("}, "--float32_layers (() must be a regular"),
    "frozen": ({"freeze": "["}, "--freeze ([) must be a regular"),
    "crop": ({"crop_pct": 0.875}, "--crop_pct (0.875) needs --image_size."),
    "all head": (
        {"head_epochs": 5, "epochs": 5},
        "--head_epochs (5) must be fewer than --epochs (5).",
    ),
    "nowhere to roll back from": (
        {"rollback": 1, "on_stuck": "warn"},
        "--rollback (1) needs --on_stuck=raise, not warn.",
    ),
    "another precision from the start": (
        {"change_precision": True},
        "--change_precision (True) needs --resume.",
    ),
    "float32 layers in Keras' arithmetic": (
        {"keras_arithmetic": True, "float32_layers": "x"},
        "--float32_layers (x) contradicts --keras_arithmetic.",
    ),
    "inspection of many devices": (
        {"strategy": "mirrored", "inspect_every": 3},
        "--inspect_every (3) is not available with --strategy=mirrored.",
    ),
    "arithmetic of Keras' loop": (
        {"loop": "keras", "keras_arithmetic": True},
        "--keras_arithmetic (True) is not available with --loop=keras.",
    ),
    "recomputation of Keras' loop": (
        {"loop": "keras", "recompute": True},
        "--recompute (True) is not available with --loop=keras.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused_in_one_line(name):
    values, message = REFUSED[name]
    with pytest.raises(ValueError) as error:
        settings.Config.of(**values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
