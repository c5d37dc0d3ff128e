"""Signals: the first is noted, a second SIGINT interrupts, handlers are restored."""

import os
import signal

import pytest

from mp_loop.cli import signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def terminal():
    """The tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_noted_and_a_second_sigint_interrupts(number):
    before = {n: signal.getsignal(n) for n in NUMBERS}
    with pytest.raises(KeyboardInterrupt), signals.stop_requested() as stop_requested:
        assert stop_requested() == 0
        os.kill(os.getpid(), number)
        assert stop_requested() == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested() == number
        os.kill(os.getpid(), signal.SIGINT)
    assert {n: signal.getsignal(n) for n in before} == before


def test_nohup_keeps_a_closed_terminal_away():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stop_requested() as stop_requested:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop_requested() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
