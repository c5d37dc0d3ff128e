"""Watching a run: what is written, what is said of a skip, and what it changes."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

import mp_loop
from mp_loop.numerics import probe
from mp_loop.report import numerics_plots
from mp_loop.run import (
    checkpointing,
    divergence,
    loop,
    planning,
    records,
    run_folder,
    watching,
)
from tests.support import steps

pytestmark = pytest.mark.usefixtures("same_bits")

STEPS_PER_EPOCH = 4


@functools.cache
def traced(rule):
    """A step and what its variables were, for all trainings of a rule."""
    keras.utils.clear_session()  # the same names each time
    step = steps.make(loss_scale=rule)
    return step, [v.numpy() for v in step.state.named().values()]


@functools.cache
def probed(rule):
    """The probe of the step, which a run that is not watched does without."""
    return probe.Probe(traced(rule)[0])


def session(folder, batches, *, watched=True, total=8, every=0, after=100, **rule):
    """Trains in a folder; returns every bit of the step."""
    rule = mp_loop.DynamicLossScale(**rule)
    step, beginning = traced(rule)
    for variable, value in zip(step.state.named().values(), beginning, strict=True):
        variable.assign(value)
    plan = planning.Plan(
        total,
        STEPS_PER_EPOCH,
        steps.BATCH,
        steps_per_call=3,
        log_every=4,
        inspect_every=every,
        diverged_after=after,
    )
    run = run_folder.RunFolder.create(str(folder), "")
    saved = checkpointing.Checkpoints(folder / "checkpoints", step.state, 1)
    watcher = watching.NullWatcher()
    if watched:
        watcher = watching.ProbeWatcher(probed(rule), batches, STEPS_PER_EPOCH, run)
    try:
        loop.Loop(step, batches, dict, plan, run, saved, watcher=watcher).train()
    finally:
        run.close()
    return steps.bits(probe.variables(step))


def test_a_watched_run_is_the_same_to_the_bit(tmp_path):
    rule = {"initial_scale": 2.0**18}  # some skips, to be explained
    alone = session(tmp_path / "a", steps.batches, watched=False, **rule)
    watched = session(tmp_path / "b", steps.batches, every=2, **rule)
    assert alone == watched
    lines = [records.read_metrics(tmp_path / name) for name in "ab"]
    first = lines[1][0].pop("overflow")
    for pair in zip(*lines, strict=True):
        for line in pair:
            line.pop("examples_per_second")
            line.pop("input_wait")
            line.pop("overflow", None)
        assert pair[0] == pair[1]
    skipped = lines[0][0]["skipped_steps"]
    assert 0 < skipped <= 4
    # Skips come first here: the last of them is followed by updates.
    assert first["step"] == skipped
    assert first["updates_since"] == 4 - skipped
    assert first["loss_scale"] == 2.0 ** (18 - (skipped - 1))
    assert first["pass"] == "backward" and "infinite" in first["kind"]

    looks = records.read_numerics(tmp_path / "b")
    assert [line["step"] for line in looks] == [0, 2, 4, 6]
    assert not records.read_numerics(tmp_path / "a")
    names = [layer["name"] for layer in looks[0]["layers"]]
    assert names[0] == "conv2d" and len(names) == 7
    for values in ("activations", "activation_grads"):
        read_back(tmp_path / "b", looks, values)
    assert numerics_plots.draw_steps(tmp_path / "steps.png", looks)
    assert numerics_plots.draw_exponents(tmp_path / "exponents.png", looks[-1])
    for name in ("steps.png", "exponents.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def read_back(folder, looks, values):
    """TensorBoard's histograms are the counted ones."""
    events = event_accumulator.EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"tensors": 0}
    )
    events.Reload()
    for i, layer in enumerate(looks[0]["layers"]):
        if not layer[values]["histogram"]:
            continue
        written = events.Tensors(f"{values}/{layer['name']}")
        assert [event.step for event in written] == [line["step"] for line in looks]
        for event, line in zip(written, looks, strict=True):
            entry = line["layers"][i][values]
            buckets = tf.make_ndarray(event.tensor_proto)
            first = entry["first"]
            expected = [
                [first + j, first + j + 1, count]
                for j, count in enumerate(entry["histogram"])
            ]
            np.testing.assert_array_equal(buckets, expected)


def poisoned(*numbers):
    def batches(epoch, start):
        return steps.batches(epoch, start, poison=numbers)

    return batches


def test_a_bad_batch_is_named_in_the_line(tmp_path):
    session(tmp_path, poisoned(2, 5))
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in text]
    found = [line["overflow"] for line in lines]
    assert [(each["step"], each["updates_since"]) for each in found] == [(3, 1), (6, 2)]
    for each in found:
        assert each["pass"] == "input" and each["kind"] == "NaN"
        assert each["count"] == each["of"] == steps.BATCH * 64
        assert each["text"].startswith("input: 1024 of 1024 numbers of the batch")


def test_a_diverged_run_says_where_it_began(tmp_path):
    with pytest.raises(
        divergence.TrainingDiverged, match="last overflow began: input: 1024 of 1024"
    ):
        session(tmp_path, poisoned(*range(8)), after=8)


def test_without_a_skip_nothing_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(probe.Probe, "origin", None)
    monkeypatch.setattr(probe.Probe, "look", None)
    session(tmp_path, steps.batches)
    assert all("overflow" not in line for line in records.read_metrics(tmp_path))


def test_an_overflow_that_is_gone_is_told_from_the_nearest(tmp_path):
    """The weights have moved since: what a larger scale shows is said to be that."""

    class Moved:
        """A probe of weights that overflow from 2^18 on."""

        def origin(self, *batch, scale, search=True):
            finite = scale < 2.0**18
            text = f"nothing at {scale:g}" if finite else "backward: something"
            return {"finite": finite, "loss_scale": scale, "text": text}

    seen = watching.ProbeWatcher(Moved(), steps.batches, STEPS_PER_EPOCH, None)
    metrics = {
        "grads_finite": tf.constant([True, False, True]),
        "forward_finite": tf.constant([True, True, True]),
        "loss_scale": tf.constant([2.0**16, 2.0**16, 2.0**15]),
    }
    seen.remember(1, metrics)
    found = seen.report(4)["overflow"]
    assert (found["step"], found["updates_since"]) == (3, 1)
    assert (found["loss_scale"], found["seen_at"]) == (2.0**16, 2.0**18)
    assert found["text"] == (
        "backward: nothing at 65536 with the weights after 1 more update; "
        "backward: something"
    )
    assert seen.report(4) == {}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (tf.errors.ResourceExhaustedError(None, None, ""), "out of memory"),
        (ValueError("No such thing.\nAnd so on."), "ValueError: No such thing"),
    ],
    ids=["memory", "anything"],
)
def test_a_look_that_fails_does_not_end_a_training(error, said, caplog):
    class Failing:
        def origin(self, *batch, **kwargs):
            raise error

        look = origin

    seen = watching.ProbeWatcher(Failing(), steps.batches, STEPS_PER_EPOCH, None)
    seen.look(3)
    assert f"Step 3 was not inspected: {said}." in caplog.text
    seen.remember(0, {
        "grads_finite": tf.constant([False]),
        "forward_finite": tf.constant([True]),
        "loss_scale": tf.constant([1.0]),
    })  # fmt: skip
    assert seen.report(1)["overflow"]["text"] == f"not explained: {said}"


def test_a_resumed_run_drops_later_looks(tmp_path):
    run = run_folder.RunFolder.create(str(tmp_path), "")
    line = {"loss_scale": 1.0, "layers": [], "variables": []}
    for step in (0, 4, 8):
        run.log_numerics({"step": step, **line})
    run.close()
    run = run_folder.RunFolder.reopen(str(tmp_path), "", 4)
    assert [line["step"] for line in records.read_numerics(run.folder)] == [0]
    run.close()
