"""Phases: where they end, and which of them trains the head alone."""

import pytest

from mp_loop.config import errors, settings
from mp_loop.run import phases

RUNS = {
    "epochs": ({"epochs": 3}, (30,), [30], [False]),
    "steps": ({"steps": 7}, (7,), [7], [False]),
    "head": ({"epochs": 3, "head_epochs": 1}, (10, 30), [10, 20], [True, False]),
    "steps after the head": (
        {"steps": 11, "head_epochs": 1},
        (10, 11),
        [10, 1],
        [True, False],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_phases_of_a_run(name):
    values, ends, lengths, heads = RUNS[name]
    found = phases.from_settings(settings.Config.of(**values), steps_per_epoch=10)
    assert found.ends == ends and found.total_steps == ends[-1]
    numbers = range(len(ends))
    assert [found.steps(phase) for phase in numbers] == lengths
    assert [found.trains_head_alone(phase) for phase in numbers] == heads


def test_a_run_that_ends_within_its_head_is_refused():
    config = settings.Config.of(steps=10, head_epochs=1)
    with pytest.raises(errors.UsageError, match=r"--head_epochs \(1\) are 10 steps"):
        phases.from_settings(config, steps_per_epoch=10)
