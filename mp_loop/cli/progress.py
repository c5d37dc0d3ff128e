"""How far a run is: a bar on a terminal, plain lines elsewhere, or nothing.

    shown = Progress(total_steps=368, done=0, quiet=False)
    with shown.first_steps():
        ...            # which are traced and compiled
    shown(line)        # of metrics or of an evaluation
    shown.close()

Lines of metrics go to stderr, evaluations to stdout.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from mp_loop.config import json_values
from mp_loop.rendering import numbers
from mp_loop.run import input_hint, records

# How long nothing may be said while the first steps are made.
_SILENT_SECONDS = 20.0


class Progress:
    """Shows lines of metrics on stderr and evaluations on stdout."""

    def __init__(
        self,
        total_steps: int,
        done: int = 0,
        quiet: bool = False,
        metric: str = "eval_accuracy",
        clock: Callable[[], float] = time.monotonic,
    ):
        """Shows the start.

        Args:
          total_steps: where the run ends.
          done: steps of an earlier process.
          quiet: show nothing at all.
          metric: its key in evaluations.
          clock: returns the time in seconds.
        """
        self._clock = clock
        self._first: tuple[int, float] | None = None  # step and time of a line
        self._metric = metric
        self._total, self._quiet, self._bar = total_steps, quiet, None
        if not quiet and sys.stderr.isatty():
            import tqdm  # with TensorFlow, which takes seconds

            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=done,
                unit="step",
                dynamic_ncols=True,
                mininterval=1,
            )

    def __call__(self, line: json_values.Object) -> None:
        """Shows a line of metrics, or of an evaluation."""
        if self._quiet:
            return
        step = line["step"]
        if "eval_loss" in line:
            key = records.metric_key(line)
            text = (
                f"step {step}: {records.metric_title(key)} {line[key]:.4f}, "
                f"loss {line['eval_loss']:.4f}"
            )
            self._write(text, sys.stdout)
            return
        if "overflow" in line:
            skip = line["overflow"]
            self._write(f"step {skip['step']} was skipped: {skip['text']}", sys.stderr)
        measured = line.get(records.training_key(self._metric))
        title = records.metric_title(self._metric)
        also = "" if measured is None else f"{title} {measured:.3f}, "
        text = (
            f"loss {line['loss']:.3f}, {also}scale {line['loss_scale']:g}, "
            f"skipped {line['skipped_steps']}, "
            f"{line['examples_per_second']:.0f} examples/s"
        )
        if input_hint.is_large(line.get("input_wait")):
            text += f", waits for data {line['input_wait']:.0%} of the time"
        if self._bar is None:
            text += self._left(step)
            self._write(f"step {step}/{self._total}: {text}", sys.stderr)
        else:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(text)

    @contextlib.contextmanager
    def first_steps(self, silent_seconds: float = _SILENT_SECONDS) -> Iterator[None]:
        """Says from time to time that the step is being compiled, inside."""
        over, began = threading.Event(), self._clock()

        def tell() -> None:
            while not over.wait(silent_seconds):
                seconds = self._clock() - began
                text = f"tracing and compiling the step, {seconds:.0f} s so far"
                self._write(text, sys.stderr)

        teller = threading.Thread(target=tell, daemon=True)
        if not self._quiet:
            teller.start()
        try:
            yield
        finally:
            over.set()
            if teller.is_alive():
                teller.join()

    def _left(self, step: int) -> str:
        """Says how long the rest will take, as the steps since the first line did."""
        if self._first is None:  # before it, there was tracing
            self._first = step, self._clock()
            return ""
        first, began = self._first
        each = (self._clock() - began) / (step - first) if step > first else 0.0
        seconds = each * (self._total - step)
        return f", {numbers.duration(seconds)} left" if seconds >= 0.5 else ""

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _write(self, text: str, stream: TextIO) -> None:
        if self._bar is None:
            stream.write(text + "\n")
            stream.flush()
        else:
            self._bar.write(text, file=stream)
