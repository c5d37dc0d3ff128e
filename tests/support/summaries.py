"""Summaries of runs that were never made."""


def summary(**values):
    return {
        "eval_accuracy": 0.875,
        "eval_loss": 0.5,
        "skipped_steps": 2,
        "final_loss_scale": 32768.0,
        "milliseconds_per_step": 8.0,
        "examples_per_second": 1024.0,
        "peak_memory_bytes": 512 << 20,
        **values,
    }
