"""How much of the time is waiting for data, from when batches were wanted and came."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.run import input_hint, input_wait


def call(began, came):
    names = {"fetch_began": began, "fetch_ended": came}
    return {k: tf.constant(v, tf.float64) for k, v in names.items()}


def share(ahead, monkeypatch, *calls):
    """The share of calls, each with the time when it returned."""
    wait = input_wait.InputWait(ahead)
    for began, came, end in calls:
        monkeypatch.setattr(input_wait.time, "time", lambda end=end: end)
        wait.add(call(began, came))
    return wait.take()


def test_a_host_waits_while_the_iterator_does(monkeypatch):
    first = [10.0, 14.0], [11.0, 16.0], 18.0  # 3 of 8 seconds
    second = [30.0], [31.0], 34.0  # 1 of 4, after something else
    assert share(False, monkeypatch, first, second) == 4 / 12


def test_without_a_clock_there_is_no_share(monkeypatch):
    assert share(False, monkeypatch, ([np.nan], [np.nan], 18.0)) is None


@pytest.mark.parametrize(
    ("came", "end", "waited"),
    [
        # Steps of 2 seconds; the host, ahead of them, waits for each batch.
        pytest.param([0.0, 1.5, 3.0, 4.5], 8.0, 0.0, id="the device is the slower"),
        pytest.param([1.0, 4.0, 7.0, 10.0], 12.0, 4.0, id="the data are"),
        pytest.param([0.0, 1.0, 9.0, 9.5], 13.0, 5.0, id="one batch is late"),
    ],
)
def test_a_device_waits_only_where_it_has_nothing_to_do(came, end, waited, monkeypatch):
    began = [0.0, *came[:-1]]
    assert input_wait.idle(0.0, np.array(came), end) == waited
    assert share(True, monkeypatch, (began, came, end)) == waited / end


def test_a_share_counts_by_steps_and_is_told_where_it_is_large():
    lines = [
        {"step": 10, "input_wait": 0.1},
        {"step": 40, "input_wait": 0.5},
        {"step": 60, "loss": 1.0},  # of an earlier version
    ]
    assert input_hint.mean_share(lines) == pytest.approx(0.4)
    assert "waited for data 40% of their time" in input_hint.text(lines)
    assert not input_hint.text([]) and not input_hint.text(lines[:1])
