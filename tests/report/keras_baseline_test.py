"""Against what a run stands."""

import json
import pathlib
import shlex

import pytest

from mp_loop.cli import app
from mp_loop.config import settings
from mp_loop.report import keras_baseline

ENVIRONMENT = {"cpu": "EPYC", "cpu_cores": 2, "gpus": [], "tensorflow": "2.21"}
SUMMARY = {
    "eval_accuracy": 0.875,
    "milliseconds_per_step": 10.0,
    "peak_memory_bytes": 300 * 2**20,
}
THEIRS = {
    "eval_accuracy": 0.75,
    "milliseconds_per_step": 20.0,
    "peak_memory_bytes": 600 * 2**20,
}


def make(folder, summary=None, environment=ENVIRONMENT, data=None, **flags):
    folder.mkdir()
    config = settings.Config.of(output_dir=str(folder), **flags)
    (folder / "flags.txt").write_text(config.to_flagfile())
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "summary.json").write_text(json.dumps(summary or THEIRS))
    if data:
        (folder / "data.json").write_text(json.dumps(data))
    return folder


def told(run):
    return keras_baseline.paragraph(run, SUMMARY)


def test_metric_time_and_memory_of_a_run_beside_it(tmp_path):
    (tmp_path / "a file").write_text("")
    make(tmp_path / "no flags").joinpath("flags.txt").unlink()
    make(tmp_path / "another seed", loop="keras", seed=7)
    make(tmp_path / "float32", loop="keras", precision="float32")
    make(tmp_path / "other data", loop="keras", data={"train": 2})
    run = make(
        tmp_path / "ours", recompute=True, accumulate_steps=4, inspect_every=7,
        backoff_factor=0.25, data={"train": 1},
    )  # fmt: skip
    # The other precision, where there is no better one.
    assert "Keras' loop in float32 (" in told(run)
    make(tmp_path / "th<eirs", loop="keras", log_every=1)
    assert told(run) == (
        '<p>Keras\' loop in float16 (<a href="../th%3Ceirs/report.html">th&lt;eirs'
        "</a>), with the same settings, data and seed: accuracy 0.7500, 20.0 ms/step, "
        "600 MiB. This run: accuracy +0.1250, 0.50 of the time per step, 0.50 of the "
        "memory. What of it is chance, a comparison of several runs tells (python -m "
        "mp_loop.compare).</p>"
    )
    assert keras_baseline.paragraph(run, {}) == ""  # it has not finished
    assert told(tmp_path / "float32") == "" and told(tmp_path / "no flags") == ""


def test_times_of_another_machine_are_not_compared(tmp_path):
    run = make(tmp_path / "ours")
    make(tmp_path / "theirs", loop="keras", environment={"cpu": "another"})
    said = told(run)
    assert "accuracy +0.1250." in said and "times say nothing" in said
    assert "ms/step" not in said and "MiB" not in said


def test_the_command_that_is_told_is_one(tmp_path):
    run = make(
        tmp_path / "a run", recompute=True, strategy="mirrored", float32_layers="x",
        accumulate_steps=2, scale_preset="torch", learning_rate=0.25,
    )  # fmt: skip
    command = told(run).partition("<pre>")[2].partition(" &amp;&amp; ")[0]
    words = shlex.split(command.replace("&#x27;", "'"))
    config, _ = app.parse(words[2:])
    assert config.precision.loop == "keras" and config.optimizer.learning_rate == 0.25
    assert config.records.output_dir == str(tmp_path / "a run-keras")
    # What that command makes is found.
    make(pathlib.Path(config.records.output_dir))
    text = config.to_flagfile()
    (tmp_path / "a run-keras" / "flags.txt").write_text(text)
    assert "a run-keras</a>" in told(run)


def test_a_folder_that_is_where_one_is(tmp_path, monkeypatch):
    run = make(tmp_path / "ours")
    monkeypatch.chdir(run)
    assert f"--output_dir={run}-keras" in told(pathlib.Path("."))
    make(tmp_path / "50%#?", loop="keras")
    assert '<a href="../50%25%23%3F/report.html">50%#?</a>' in told(pathlib.Path("."))


@pytest.mark.parametrize(
    "flags", [{"lora_rank": 4, "task": "causal_lm"}, {"hysteresis": 3}]
)
def test_what_keras_loop_cannot_do_is_told(tmp_path, flags):
    said = told(make(tmp_path / "ours", **flags))
    assert said.startswith("<p>Keras' loop cannot be compared with: --")
