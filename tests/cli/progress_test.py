"""What a run shows: a bar on a terminal, plain lines elsewhere, or nothing."""

import io
import threading

import pytest

from mp_loop.cli import progress

METRICS = {
    "step": 4, "loss": 0.5, "loss_scale": 32768.0, "skipped_steps": 1,
    "examples_per_second": 1234.5,
}  # fmt: skip
EVALUATION = {"step": 8, "eval_accuracy": 0.875, "eval_loss": 0.25}
SAID = "loss 0.500, scale 32768, skipped 1, 1234 examples/s"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def streams(monkeypatch):
    """Replaces stdout and stderr, the latter a terminal or not."""

    def make(terminal):
        out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        return out, err

    return make


def show(quiet=False):
    shown = progress.Progress(12, 0, quiet)
    shown(METRICS)
    shown(EVALUATION)
    shown.close()


def test_plain_lines_where_there_is_no_terminal(streams):
    out, err = streams(terminal=False)
    show()
    assert err.getvalue() == f"step 4/12: {SAID}\n"
    assert out.getvalue() == "step 8: accuracy 0.8750, loss 0.2500\n"


def test_it_tells_that_the_first_steps_are_being_compiled(streams, monkeypatch):
    _, err = streams(terminal=False)
    told = threading.Event()
    monkeypatch.setattr(err, "flush", told.set)
    clock = iter([3.0, *[44.6] * 1000])
    shown = progress.Progress(12, clock=lambda: next(clock))
    before = threading.active_count()
    with shown.first_steps(silent_seconds=0.01):
        assert told.wait(60)
    assert "tracing and compiling the step, 42 s so far\n" in err.getvalue()
    assert threading.active_count() == before


def test_quiet_runs_do_not_tell(streams):
    _, err = streams(terminal=False)
    with progress.Progress(12, quiet=True).first_steps(silent_seconds=0):
        pass
    assert err.getvalue() == ""


def test_a_bar_on_a_terminal(streams):
    out, err = streams(terminal=True)
    show()
    assert "\r" in err.getvalue() and SAID in err.getvalue()
    assert out.getvalue() == "step 8: accuracy 0.8750, loss 0.2500\n"


def test_the_metric_stands_beside_the_loss_where_a_line_has_it(streams):
    _, err = streams(terminal=False)
    shown = progress.Progress(12, metric="eval_mean_squared_error")
    shown({**METRICS, "mean_squared_error": 0.25, "accuracy": 1.0})
    loss, rest = SAID.split(", ", 1)
    said = f"{loss}, mean squared error 0.250, {rest}"
    assert err.getvalue() == f"step 4/12: {said}\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_says_nothing(streams, terminal):
    out, err = streams(terminal)
    show(quiet=True)
    assert out.getvalue() == err.getvalue() == ""


def test_lines_tell_how_long_the_rest_takes(streams):
    _, err = streams(terminal=False)
    times = iter([100.0, 110.0, 400.0, 800.0])
    shown = progress.Progress(100, clock=lambda: next(times))
    for step in (10, 20, 50, 100):
        shown({**METRICS, "step": step})
    lines = err.getvalue().splitlines()
    ends = [line.rpartition("examples/s")[2] for line in lines]
    assert ends == ["", ", 1:20 min left", ", 6:15 min left", ""]
