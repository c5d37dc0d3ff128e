"""The outer loop: what is due when, giving up, stopping, resuming."""

import functools

import keras
import numpy as np
import pytest

import mp_loop
from mp_loop.run import checkpointing, loop, planning, records, run_folder
from tests.support import steps

pytestmark = pytest.mark.usefixtures("same_bits")


@functools.cache
def traced(rule):
    """A step, an evaluation and what its variables were, for all trainings of a rule.

    Each is over, and looked at, before the next begins.
    """
    keras.utils.clear_session(free_memory=False)  # names start anew
    step = steps.make(loss_scale=rule, metrics=["accuracy"])
    metric = "sparse_categorical_accuracy"
    evaluate = mp_loop.EvalStep(step.model, steps.loss(), metric)
    return step, evaluate, [v.numpy() for v in step.state.named().values()]


class Session:
    """One training in a folder, to be run in pieces."""

    def __init__(
        self,
        folder,
        resume=False,
        total=10,
        poison=(),
        stop_at=None,
        on_stuck="raise",
        accuracies=None,
        early_stopping=0,
        **rule,
    ):
        found = traced(mp_loop.DynamicLossScale(**rule))
        self.step, self.evaluate, beginning = found
        variables = self.step.state.named().values()
        for variable, value in zip(variables, beginning, strict=True):
            variable.assign(value)
        self.plan = planning.Plan(
            total,
            4,
            steps.BATCH,
            steps_per_call=3,
            log_every=2,
            checkpoint_every=3,
            diverged_after=6,
            on_stuck=on_stuck,
            early_stopping=early_stopping,
        )
        self.accuracies = accuracies  # by step; None: real ones
        self.checkpoints = checkpointing.Checkpoints(
            folder / "checkpoints", self.step.state, 2
        )
        if resume:
            done = self.checkpoints.restore()
            self.run = run_folder.RunFolder.reopen(str(folder), "", done)
        else:
            self.run = run_folder.RunFolder.create(str(folder), "")
        self.lines = []
        self.poison = poison
        self.stop_at = stop_at

    def __call__(self):
        try:
            return loop.Loop(
                self.step,
                lambda epoch, start: steps.batches(epoch, start, self.poison),
                lambda: self.told() or self.evaluate(steps.batches(99, 0)),
                self.plan,
                self.run,
                self.checkpoints,
                self.lines.append,
                lambda: 15 * (int(self.step.state.step) == self.stop_at),
                since_line=self.checkpoints.since_line,
            ).train()
        finally:
            self.run.close()

    def state(self):
        """The exact content of all that is trained, and of the seeds."""
        return steps.trained(self.step), steps.bits(self.step.state.seeds)

    def told(self):
        if self.accuracies is None:
            return None
        accuracy = self.accuracies[int(self.step.state.step)]
        return {"eval_loss": 1.0, "eval_accuracy": accuracy}


def untimed(lines):
    timed = ("examples_per_second", "input_wait")
    return [{k: v for k, v in x.items() if k not in timed} for x in lines]


def test_lines_counters_and_result(tmp_path):
    session = Session(tmp_path / "run", poison={1, 5})
    result = session()
    lines = records.read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert [line["skipped_steps"] for line in lines] == [1, 1, 2, 2, 2]
    assert [line["applied_steps"] for line in lines] == [1, 3, 4, 6, 8]
    assert [line["loss_scale"] for line in lines] == [2.0**15, *[2.0**14] * 2] + [
        2.0**13
    ] * 2
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert [e["step"] for e in records.read_evaluations(tmp_path / "run")] == [4, 8, 10]
    assert (result.steps, result.applied_steps, result.skipped_steps) == (10, 8, 2)
    assert result.final_loss_scale == 2.0**13
    assert 0 <= result.evaluation["eval_accuracy"] <= 1


def test_loss_and_metric_of_a_line_are_means_of_the_updates_since_the_line_before(
    tmp_path, monkeypatch
):
    session = Session(tmp_path / "run", total=8, poison={1, 6, 7})
    seen, run = [], session.step.run

    def noting(iterator, steps):
        metrics = run(iterator, steps)
        columns = ("loss", "accuracy", "grads_finite")
        rows = zip(*(metrics[name].numpy() for name in columns), strict=True)
        seen.extend(values if applied else None for *values, applied in rows)
        return metrics

    monkeypatch.setattr(session.step, "run", noting)
    session()
    lines = records.read_metrics(tmp_path / "run")
    for number, line in enumerate(lines):
        two = seen[2 * number : 2 * number + 2]
        counted = [values for values in two if values is not None]
        if counted:
            means = np.mean(np.array(counted, np.float64), axis=0)
            assert [line["loss"], line["accuracy"]] == list(means)
        else:
            assert np.isnan(line["loss"]) and "accuracy" not in line
    assert seen.count(None) == 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nothing stopped, and its state at the end."""
    session = Session(tmp_path_factory.mktemp("whole") / "run", poison={2})
    session()
    return session.run.folder, session.state()


@pytest.mark.parametrize("stop_at", [6, 8, 9])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, whole, stop_at):
    # Step 8 ends an epoch; at 9 nothing is logged.
    first = Session(tmp_path / "parts", poison={2}, stop_at=stop_at)
    with pytest.raises(loop.Interrupted) as interruption:
        first()
    assert interruption.value.step == stop_at
    second = Session(tmp_path / "parts", poison={2}, resume=True)
    second()
    folder, state = whole
    assert second.state() == state
    for read in (records.read_metrics, records.read_evaluations):
        one, other = read(folder), read(tmp_path / "parts")
        assert str(untimed(one)) == str(untimed(other))  # as text: nan equals nan


STUCK = {
    "at the floor": ({"min_scale": 2.0**13}, "scale 8192 (its floor)"),
    "far from the floor": ({"backoff_factor": 0.999}, "scale 32604"),
}


@pytest.mark.parametrize("name", STUCK)
def test_an_input_that_is_always_bad_ends_the_run(tmp_path, name):
    rule, said = STUCK[name]
    session = Session(tmp_path / "run", total=1000, poison=range(1000), **rule)
    with pytest.raises(mp_loop.TrainingDiverged, match="the loss is nan") as error:
        session()
    assert int(session.step.state.step) == 6
    assert said in str(error.value) and "\n" not in str(error.value)
    paths = [v.path for v in session.step.model.trainable_variables]
    names = ", ".join(paths[:5])
    assert f"Non-finite gradients: {names} and 3 more." in str(error.value)
    assert int(session.step.state.applied_steps) == 0


@pytest.mark.parametrize(("policy", "times"), [("warn", 2), ("stay", 0)])
def test_a_stuck_run_may_go_on(tmp_path, caplog, policy, times):
    stuck = {*range(4, 12), *range(16, 24)}
    session = Session(tmp_path / "run", total=28, poison=stuck, on_stuck=policy)
    assert session().skipped_steps == 16
    said = [text for text in caplog.messages if "The training is stuck" in text]
    assert len(said) == times


def test_lines_name_what_overflowed_since_the_line_before(tmp_path):
    first = Session(tmp_path / "run", total=12, poison={1, 5, 6}, stop_at=6)
    with pytest.raises(loop.Interrupted):
        first()
    Session(tmp_path / "run", total=12, poison={1, 5, 6}, resume=True)()
    paths = [v.path for v in first.step.model.trainable_variables]
    lines = records.read_metrics(tmp_path / "run")
    reasons = [line["skip_reasons"] for line in lines]
    assert reasons == [{"forward": n} for n in (1, 1, 2, 3, 3, 3)]
    assert [line["overflowed"] for line in lines] == [
        dict.fromkeys(paths, 1), {}, dict.fromkeys(paths, 1),
        dict.fromkeys(paths, 1), {}, {},
    ]  # fmt: skip


def test_a_recovered_run_does_not_give_up(tmp_path):
    session = Session(tmp_path / "run", poison=set(range(5)), min_scale=2.0**13)
    assert session().skipped_steps == 5
    assert int(session.step.state.stuck_steps) == 0


# Two evaluations after step 8 that are not better, of which one is as good.
ACCURACIES = {4: 0.5, 8: 0.7, 12: 0.7, 16: 0.6, 20: 0.9}


def test_a_run_that_gets_no_better_ends_early_with_its_best_weights(tmp_path):
    arguments = {"total": 20, "accuracies": ACCURACIES, "early_stopping": 2}
    whole = Session(tmp_path / "whole", **arguments)
    result = whole()
    assert (result.steps, result.best_step) == (16, 8)
    assert result.evaluation["eval_accuracy"] == 0.7
    state = whole.state()
    # Training goes on from the last state, not from the best one.
    paths = sorted(path.name for path in (tmp_path / "whole/checkpoints").iterdir())
    assert paths[0] == "step-00000008" and paths[-1] == "step-00000016"

    first = Session(tmp_path / "parts", **arguments, stop_at=14)
    with pytest.raises(loop.Interrupted):
        first()
    second = Session(tmp_path / "parts", **arguments, resume=True)
    again = second()
    assert (again.steps, again.best_step) == (16, 8)
    assert second.state() == state
    finished = Session(tmp_path / "parts", **arguments, resume=True)
    assert finished().best_step == 8 and not finished.lines
    assert finished.state() == state

    patient = Session(tmp_path / "patient", **arguments | {"early_stopping": 3})
    result = patient()
    assert (result.steps, result.best_step) == (20, None)
    assert result.evaluation["eval_accuracy"] == 0.9


def test_evaluations_without_a_number_are_not_better(tmp_path):
    accuracies = {4: 0.1, 8: np.nan, 12: np.nan, 16: 0.9}
    session = Session(
        tmp_path / "run", total=16, accuracies=accuracies, early_stopping=2
    )
    assert session().best_step == 4
