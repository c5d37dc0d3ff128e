"""Signals: the first is noted, a second SIGINT interrupts, handlers are restored."""

import os
import signal

import pytest

from mp_loop.cli import signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_a_second_sigint_interrupts(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(KeyboardInterrupt), signals.stop_requested() as stop_requested:
        assert stop_requested() == 0
        os.kill(os.getpid(), number)
        assert stop_requested() == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested() == number
        os.kill(os.getpid(), signal.SIGINT)
    assert {n: signal.getsignal(n) for n in before} == before
