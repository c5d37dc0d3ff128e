"""The settings in sections, continued from `sections`: how a run goes."""

from __future__ import annotations

import dataclasses

from mp_loop.config import choices, fields


@dataclasses.dataclass(frozen=True)
class Training(fields.Section):
    """When the training does what: read by `mp_loop.run.loop`."""

    epochs: int = fields.setting(5, "Passes over the data.", at_least=1)
    steps: int = fields.setting(0, "Total steps; 0: --epochs decides.", at_least=0)
    seed: int = fields.setting(
        0,
        "Seed of the initial weights and of the order of the data.",
        at_least=0,
        at_most=2**31 - 1,
    )
    steps_per_call: int = fields.setting(
        10, "Steps per call of a tf.function.", at_least=1
    )
    jit_compile: str = fields.setting(
        "auto", "Compile with XLA; auto: on GPUs only.", choices=choices.JIT_COMPILE
    )
    deterministic: bool = fields.setting(
        False, "Use deterministic kernels: the same run gives the same bits."
    )
    profile_steps: str = fields.setting(
        "", "A:B: profile for TensorBoard from step A up to, not including, step B."
    )
    log_every: int = fields.setting(20, "Steps between lines of metrics.", at_least=1)
    eval_every: int = fields.setting(
        0, "Steps between evaluations; 0: every epoch.", at_least=0
    )
    early_stopping: int = fields.setting(
        0,
        "Evaluations in a row without a better --best_by after which the training "
        "ends; model.keras is then the best. 0: never.",
        at_least=0,
    )
    checkpoint_every: int = fields.setting(
        0, "Steps between checkpoints; 0: every epoch.", at_least=0
    )
    diverged_after: int = fields.setting(
        100, "Consecutive skipped steps after which the training is stuck.", at_least=1
    )
    on_stuck: str = fields.setting(
        "raise",
        "If the training is stuck: raise (exit code 1), warn once and "
        "continue, or stay: continue.",
        choices=choices.ON_STUCK,
    )
    rollback: int = fields.setting(
        0,
        "How often a stuck training returns to the last good checkpoint, with "
        "a lower scale and learning rate, before --on_stuck=raise ends it.",
        at_least=0,
    )
    rollback_factor: float = fields.setting(
        0.5, "Each rollback multiplies the learning rate by this.", above=0, at_most=1
    )
    inspect_every: int = fields.setting(
        0,
        "Steps between inspections of the numerics (numerics.jsonl); 0: none.",
        at_least=0,
    )
    explain_skips: bool = fields.setting(
        True, "Analyze skipped batches to find where the overflow began."
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
        "Dtype in which replicas exchange the gradients of float16 weights.",
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
    resume: bool | str = fields.setting(
        False,
        "Continue the run in --output_dir; --resume=auto: begin it if there is none.",
        choices=("auto",),
    )
    change_precision: bool = fields.setting(
        False,
        "With --resume: --precision and the flags of the loss scale may "
        "differ from before. The scale starts anew.",
    )
    change_schedule: bool = fields.setting(
        False,
        "With --resume: the flags of the learning rate, and with any --schedule "
        "the length of the run, may differ from before.",
    )
    keep_checkpoints: int = fields.setting(
        2, "Number of newest checkpoints to keep, besides the best.", at_least=1
    )
    best_by: str = fields.setting(
        "eval_accuracy",
        "What the best checkpoint is chosen by: the highest accuracy "
        "(--metric) or the lowest loss.",
        choices=choices.BEST_BY,
    )
    callbacks: str = fields.setting(
        "",
        "package.module:function, which takes the settings and returns Keras callbacks "
        "(runs that code); they are told of each line and each evaluation.",
    )
    show_examples: bool = fields.setting(
        True,
        "Keep some test examples in test_results.json and show them in the report: "
        "the worst and the best.",
    )
    quiet: bool = fields.setting(False, "Print only warnings and errors.")
