"""The values that a setting may have, each list declared once for the whole package."""

from __future__ import annotations

# The settings that most runs are about, in the order of --help.
FIRST = (
    "output_dir",
    "dataset",
    "model",
    "precision",
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "schedule",
    "resume",
)
PRECISIONS = ("float16", "bfloat16", "float32")
HALF_PRECISIONS = ("float16", "bfloat16")
TASKS = ("classification", "multilabel", "segmentation", "regression", "causal_lm")
LOOPS = ("custom", "keras")
LOSS_SCALES = ("dynamic", "static", "none")
# Systems whose dynamic loss scale can be reproduced.
PRESETS = (
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
# Beside these --optimizer takes every other optimizer of Keras.
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear", "piecewise")
AUGMENTATIONS = ("none", "flip_shift", "flip_crop")
MAX_MAGNITUDE = 30  # of RandAugment
PREPROCESSINGS = ("auto", "dataset", "tf", "torch", "caffe", "none")
JIT_COMPILE = ("auto", "on", "off")
ON_STUCK = ("raise", "warn", "stay")
BEST_BY = ("eval_accuracy", "eval_loss", "none")
STRATEGIES = ("none", "mirrored", "multi_worker")
ALL_REDUCE_DTYPES = ("float32", "float16")
