"""What came of a run, as a table for the terminal."""

from __future__ import annotations

from mp_loop.config import json_values
from mp_loop.rendering import tables
from mp_loop.run import records


def text(summary: json_values.Object) -> str:
    """Lays out a summary (`records.read_summary`) on several lines."""
    key = records.metric_key(summary)
    rows = [
        (records.metric_title(key), f"{summary[key]:.4f}"),
        ("loss", f"{summary['eval_loss']:.4f}"),
        ("steps", f"{summary['steps']} ({summary['skipped_steps']} skipped)"),
        ("loss scale", f"{summary['final_loss_scale']:g}"),
        ("time per step", f"{summary['milliseconds_per_step']:.1f} ms"),
        ("examples/s", f"{summary['examples_per_second']:.0f}"),
        ("training time", f"{summary['train_seconds']:.1f} s"),
        ("peak memory", f"{summary['peak_memory_bytes'] / 2**20:.0f} MiB"),
    ]
    title = (
        f"{summary['model']} on {summary['dataset']}, {summary['precision']}, "
        f"{summary['loop']} loop"
    )
    lines = tables.columns(rows, left=True, indent="  ")
    return "\n".join(["", title, *lines, ""])
