"""Resuming: which settings may differ from the run's, and what is refused."""

import pytest

from mp_loop.cli import app, resume
from mp_loop.config import errors, settings

BEFORE = settings.Config.of(seed=3, precision="bfloat16", output_dir="out")


def given(*words):
    return app.parse(["train", *words, "--output_dir=out", "--resume"])


def test_what_is_not_given_is_as_before():
    config = resume.continued_run(BEFORE, *given("--epochs=9"))
    assert config == BEFORE.replace(epochs=9, resume=True)


def test_auto_means_the_precision_of_the_run():
    config = resume.continued_run(BEFORE, *given("--precision=auto"))
    assert config == BEFORE.replace(resume=True)


def test_with_no_flags_to_ask_every_setting_counts_as_given():
    with pytest.raises(errors.UsageError, match=r"--seed \(0, was 3\)"):
        resume.continued_run(BEFORE, settings.Config(), None)


REFUSED = {
    "one": (["--seed=4"], "--seed (4, was 3) must be as in the run to be resumed."),
    "all of them": (
        ["--batch_size=4", "--seed=4"],
        "--batch_size (4, was 128), --seed (4, was 3) must be as in the run",
    ),
    "a precision": (
        ["--precision=float16"],
        "--precision (float16, was bfloat16) must be as in the run to be resumed. "
        "To go on in another precision, add --change_precision.",
    ),
    "more than the precision": (
        ["--precision=float16", "--change_precision", "--seed=4"],
        "--seed (4, was 3) must be as in the run to be resumed.",
    ),
    "the length of a schedule": (
        ["--epochs=9"],
        "--epochs (9, was 5) must be as in the run to be resumed. The learning rate "
        "(--schedule=cosine) depends on the length of the run",
    ),
    "a contradiction": (
        ["--strategy=mirrored", "--all_reduce_dtype=float16"],
        "--all_reduce_dtype (float16) needs --precision=float16",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_must_not_change_is_named(name):
    words, message = REFUSED[name]
    before = BEFORE.replace(schedule="cosine") if "schedule" in name else BEFORE
    with pytest.raises(errors.UsageError) as error:
        resume.continued_run(before, *given(*words))
    assert str(error.value).startswith(message)


def test_change_precision_allows_another_precision_and_scale():
    words = ["--precision=float16", "--change_precision", "--initial_scale=8"]
    config = resume.continued_run(BEFORE, *given(*words))
    assert config.precision.precision == "float16"
    assert config.scale.initial_scale == 8.0


def test_change_schedule_allows_other_rates_and_another_length():
    before = BEFORE.replace(schedule="cosine")
    words = ["--change_schedule", "--epochs=9", "--schedule=linear", "--warmup_steps=3"]
    config = resume.continued_run(before, *given(*words, "--learning_rate=0.5"))
    assert (config.training.epochs, config.optimizer.schedule) == (9, "linear")
    with pytest.raises(errors.UsageError, match="--precision"):
        resume.continued_run(before, *given("--change_schedule", "--precision=float16"))


def test_auto_resumes_where_there_is_something(tmp_path):
    words = [f"--output_dir={tmp_path}", "--resume=auto", "--change_precision"]
    config, _ = app.parse(["train", *words])
    assert config.records.resume == "auto"
    new = resume.resolved(config, "flags.txt").records
    assert (new.resume, new.change_precision) == (False, False)
    (tmp_path / "flags.txt").write_text("")
    old = resume.resolved(config, "flags.txt").records
    assert (old.resume, old.change_precision) == (True, True)
    assert resume.resolved(BEFORE, "flags.txt") == BEFORE


@pytest.mark.parametrize("word", ["--resume=perhaps", "--resume="])
def test_a_switch_with_a_word_takes_no_other_word(word):
    with pytest.raises(errors.UsageError, match="resume"):
        app.parse(["train", word])


def test_every_setting_that_may_change_exists():
    names = {
        *resume.MAY_CHANGE, *resume.PRECISION_MAY_CHANGE, *resume.SCHEDULE_MAY_CHANGE
    }  # fmt: skip
    assert names <= set(settings.FIELDS)
