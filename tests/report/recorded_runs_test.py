"""What a run has recorded: where steps were skipped, and gaps."""

import math

from mp_loop.report import recorded_runs
from tests.support.run_folders import line


def test_skips_are_counted_between_lines():
    metrics = [
        line(20, skipped_steps=2, loss_scale=8192.0),
        line(40, skipped_steps=2, loss_scale=8192.0),
        line(60, skipped_steps=5, loss_scale=1024.0),
    ]
    found = recorded_runs.skips(metrics)
    assert [(skips.step, skips.loss_scale, skips.count) for skips in found] == [
        (20, 8192.0, 2),
        (60, 1024.0, 3),
    ]
    assert found[1].line is metrics[2]


def test_a_line_without_a_value_is_a_gap():
    column = recorded_runs.column([{"loss": 1.5}, {}, {"loss": None}], "loss")
    assert column[0] == 1.5
    assert all(map(math.isnan, column[1:]))
