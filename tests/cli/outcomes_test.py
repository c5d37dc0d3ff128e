"""How a training ended: exit codes, and the command that continues it."""

from mp_loop.cli import outcomes

CONTINUE = "Continue with: python -m mp_loop.train --flagfile={}/flags.txt --resume"


def test_codes_and_the_command_that_continues(capsys):
    ended = outcomes.interrupted(7, 15, "runs/a")
    assert outcomes.tell(ended) == 143
    assert capsys.readouterr().err == (
        f"Interrupted at step 7; a checkpoint was saved. {CONTINUE.format('runs/a')}\n"
    )
    ended = outcomes.not_saved(OSError("full"), None, "runs/a")
    assert ended.code == 3 and ended.message.endswith(CONTINUE.format("runs/a"))
    assert "The last checkpoint in it was left as it is." in ended.message
    ended = outcomes.not_saved(OSError("full"), "/tmp/b", "runs/a")
    assert ended.message.endswith(CONTINUE.format("/tmp/b"))
    ended = outcomes.results_not_written(OSError(28, "No space left"), "runs/a")
    assert ended.code == 3 and "cannot be written: No space left. " in ended.message
    assert outcomes.diverged(ValueError("x")).code == 1
    assert outcomes.replicas_differ(ValueError("x")).code == 1
    assert outcomes.worker_lost("a worker.").code == 75
