"""Ends of commands: which exit code, and what the user reads."""

import errno
import signal

import pytest

from mp_loop.cli import outcomes
from mp_loop.config import errors

CONTINUE = "python -m mp_loop.train --flagfile={}/flags.txt --resume"

ENDS = {
    "bad input": (outcomes.bad_input(errors.UsageError("a\nb")), 2, "a b"),
    "diverged": (
        outcomes.diverged(RuntimeError("stuck.")),
        1,
        "Training diverged: stuck.",
    ),
    "replicas": (
        outcomes.replicas_differ(RuntimeError("one is odd.")),
        1,
        "Replicas differ: one is odd.",
    ),
    "SIGTERM": (
        outcomes.interrupted(7, signal.SIGTERM, "out"),
        143,
        "Interrupted at step 7; a checkpoint was saved. Continue with: "
        f"{CONTINUE.format('out')}",
    ),
    "a name that a shell would read": (
        outcomes.interrupted(7, signal.SIGINT, "my runs;b"),
        130,
        "Interrupted at step 7; a checkpoint was saved. Continue with: python -m "
        "mp_loop.train '--flagfile=my runs;b/flags.txt' --resume",
    ),
    "worker": (
        outcomes.worker_lost("no answer."),
        75,
        "Worker lost: no answer. Start all workers again with --resume to continue "
        "from the last checkpoint.",
    ),
    "folder lost": (
        outcomes.folder_lost("out", OSError("disk is full"), None),
        3,
        "--output_dir (out) cannot be written any more: disk is full. The last "
        f"checkpoint in it is unchanged. Continue with: {CONTINUE.format('out')}",
    ),
    "state rescued": (
        outcomes.folder_lost("out", OSError("disk is full"), "/tmp/x"),
        3,
        "--output_dir (out) cannot be written any more: disk is full. The state was "
        f"saved in /tmp/x. Continue with: {CONTINUE.format('/tmp/x')}",
    ),
    "results": (
        outcomes.results_not_written("out", OSError(errno.ENOSPC, "No space")),
        3,
        "--output_dir (out) cannot be written: No space. The training is finished and "
        "in its last checkpoint. Write the results with: "
        f"{CONTINUE.format('out')}",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_has_its_code_and_one_line(name, capsys):
    outcome, code, message = ENDS[name]
    assert outcome.tell() == code
    assert capsys.readouterr().err == f"{message}\n"
