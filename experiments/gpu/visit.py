"""One visit to a machine with a GPU, within its minutes.

    experiments/gpu/run.sh 12 --data_dir=TFDS --vision_model=FILE --text_model=FOLDER
    experiments/gpu/run.sh 5 --tiny          # whether every stage runs; on a processor

The stages of `experiments.gpu.plan` run one after the other, each as a process with a
share of the time that is left. One that fails or is cut does not stop the next.
`--output_dir` gets a folder for each stage, with its log and its results, visit.json
and record.md; both are written again after each stage, in case the visit is cut.

Exit codes: 0 every stage was done, 1 one was not, 2 bad input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from experiments.gpu import plan, record
from mp_loop.run import files, strict_json

_MINUTES = flags.DEFINE_float("minutes", None, "What the visit may take.", 0.0)
_TINY = flags.DEFINE_bool("tiny", False, "Run every stage as small as it gets.")
_OUTPUT = flags.DEFINE_string("output_dir", "runs/gpu", "A folder for the results.")
_STAGES = flags.DEFINE_list("stages", [], "Run these alone; empty: all.")
_DATA = flags.DEFINE_string("data_dir", "", "Folder of TFDS, with both data sets.")
_VISION = flags.DEFINE_string("vision_model", "", "MobileNetV2 as a .keras file.")
_TEXT = flags.DEFINE_string("text_model", "", "Folder of a preset of keras_hub.")

_SHORTEST_SECONDS = 5.0  # less than a process needs to start
_START = 0.7  # of the time of a stage, for what a benchmark compiles
_GRACE_SECONDS = 4.0  # between the signals that ask to stop and that kill


@dataclasses.dataclass
class Outcome:
    """What came of a stage.

    Attributes:
      stage: the stage.
      said: "done", "failed (exit code 1)", "cut after its 30 s", "not run: why".
      seconds: what it took.
    """

    stage: plan.Stage
    said: str
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.said == "done"


def visit(
    stages: Sequence[plan.Stage], seconds: float, folder: pathlib.Path, command: str
) -> list[Outcome]:
    """Runs the stages and keeps the record up to date.

    Args:
      stages: the most important first.
      seconds: for all of them.
      folder: where the results go.
      command: that the record names.
    """
    deadline = time.monotonic() + seconds
    outcomes = [Outcome(stage, "not run: not reached") for stage in stages]
    for place, outcome in enumerate(outcomes):
        stage, left = outcome.stage, deadline - time.monotonic()
        limit = left * stage.weight / sum(later.weight for later in stages[place:])
        if stage.needs:
            outcome.said = f"not run: {stage.needs}"
        elif limit < _SHORTEST_SECONDS:
            outcome.said = "not run: no time was left"
        else:
            print(f"{stage.name}: at most {limit:.0f} s", flush=True)
            run(outcome, limit, folder / stage.name)
        print(f"{stage.name}: {outcome.said}", flush=True)
        write(outcomes, folder, command)
    return outcomes


def run(outcome: Outcome, limit: float, folder: pathlib.Path) -> None:
    """Runs a stage in a process group of its own; nothing of it is left behind."""
    folder.mkdir(parents=True)
    facts = {"folder": folder, "start": round(_START * limit)}
    words = [word.format(**facts) for word in outcome.stage.words]
    # Processes share a card; without this the first takes all of it.
    around = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} | os.environ
    started = time.monotonic()
    with (
        open(folder / record.STDOUT, "w") as out,
        open(folder / record.LOG, "w") as log,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            env=around | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            code = process.wait(max(limit - _GRACE_SECONDS, 0))
            outcome.said = "done" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            outcome.said = f"cut after its {limit:.0f} s"
            process.send_signal(signal.SIGINT)  # tests say what failed so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    outcome.seconds = time.monotonic() - started


def write(outcomes: Sequence[Outcome], folder: pathlib.Path, command: str) -> None:
    """Writes visit.json and record.md."""
    results = [
        record.Result(o.stage, o.said, o.seconds, folder / o.stage.name)
        for o in outcomes
    ]
    document = strict_json.to_document(record.as_json(results, command))
    files.write_atomically(folder / "visit.json", document)
    files.write_atomically(folder / "record.md", record.text(results, command))


def main(argv: list[str]) -> int:
    """Runs the visit; returns the exit code."""
    folder = pathlib.Path(_OUTPUT.value).absolute()
    stages = plan.stages(
        plan.Inputs(_TINY.value, _DATA.value, _VISION.value, _TEXT.value)
    )
    unknown = set(_STAGES.value) - {stage.name for stage in stages}
    wrong = ""
    if len(argv) > 1:
        wrong = f"Unexpected positional arguments: {' '.join(argv[1:])}"
    elif not _MINUTES.value:
        wrong = f"--minutes ({_MINUTES.value}) must be positive."
    elif unknown:
        known = ", ".join(stage.name for stage in stages)
        wrong = f"--stages must be among: {known}; not '{min(unknown)}'."
    elif folder.exists():
        wrong = f"--output_dir ({folder}) exists; a visit begins a new folder."
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    chosen = [s for s in stages if not _STAGES.value or s.name in _STAGES.value]
    folder.mkdir(parents=True)
    command = shlex.join(["python", "-m", "experiments.gpu.visit", *sys.argv[1:]])
    outcomes = visit(chosen, 60 * _MINUTES.value, folder, command)
    print(f"Record: {folder / 'record.md'}")
    return int(not all(outcome.done for outcome in outcomes))


if __name__ == "__main__":
    app.run(main)
