"""The files of a run, read back."""

import json
import pathlib

import pytest

from mp_loop.config import errors
from mp_loop.report import run_page, training_plot
from mp_loop.run import records

DAMAGED = {
    "a counter that is none": ("metrics.jsonl", "skipped_steps", None),
    "a counter that is half": ("metrics.jsonl", "applied_steps", 1.5),
    "a counter below 0": ("metrics.jsonl", "skipped_steps", -1),
    "a counter that is true": ("metrics.jsonl", "rollbacks", True),
    "a step beyond all steps": ("metrics.jsonl", "step", 10**30),
    "a loss that is text": ("metrics.jsonl", "loss", "low"),
    "a loss scale that is a list": ("metrics.jsonl", "loss_scale", [1]),
    "a number without end": ("metrics.jsonl", "grad_norm", 10**400),
    "overflows that are a list": ("metrics.jsonl", "overflowed", ["a"]),
    "an overflow without text": ("metrics.jsonl", "overflow", {"text": 5}),
    "an accuracy that is text": ("evaluations.jsonl", "eval_accuracy", "high"),
    "another metric": ("evaluations.jsonl", "eval_auc", {}),
    "layers that are numbers": ("numerics.jsonl", "layers", [1, 2]),
    "a layer without a name": ("numerics.jsonl", "layers", [{}]),
    "counts that are text": (
        "numerics.jsonl",
        "layers",
        [{"name": "a", "activations": {"inf": "x"}}],
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_value_is_named_and_left_out(tmp_path, name, caplog):
    """And neither the report nor the picture of such a run fails."""
    file, key, value = DAMAGED[name]
    good = {"step": 1}
    text = json.dumps(good) + "\n" + json.dumps({"step": 2, key: value}) + "\n"
    (tmp_path / file).write_text(text)
    found = records.read(tmp_path, file)
    assert found.lines == [good] and len(found.damaged) == 1
    assert found.damaged[0].startswith(f"line 2: {key} is ")
    page = pathlib.Path(run_page.write(tmp_path)).read_text()
    assert f"{file} is damaged and partly left out: line 2: {key} is" in page
    assert training_plot.draw_run(tmp_path)


def test_many_damaged_lines_are_one_warning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text("x\n" * 5)
    assert records.read_metrics(tmp_path) == []
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("; and 2 more.")


def test_a_damaged_summary_is_refused_and_its_report_says_so(tmp_path):
    summary = {"eval_accuracy": None, "steps": 3, "skipped_steps": [], "model": "cnn"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "environment.json").write_text("[1]")
    (tmp_path / "flags.txt").write_bytes(b"--model=\xff\n")
    with pytest.raises(errors.RecordError, match="skipped_steps is"):
        records.read_summary(tmp_path)
    page = pathlib.Path(run_page.write(tmp_path)).read_text()
    assert "summary.json is damaged and partly left out" in page
    assert "not finished" not in page and "<b>3</b>steps" in page


def test_a_value_that_is_needed_is_named(tmp_path):
    (tmp_path / "summary.json").write_text('{"eval_loss": 1.0}')
    with pytest.raises(errors.RecordError, match="it has no steps"):
        records.read_summary(tmp_path, ["eval_loss", "steps"])


SUMMARIES = [
    pytest.param(None, id="missing"),
    pytest.param("{", id="half written"),
    pytest.param("[]", id="no object"),
]


@pytest.mark.parametrize("text", SUMMARIES)
def test_read_summary_refuses(tmp_path, text):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(errors.RecordError, match="not the summary of a run"):
        records.read_summary(tmp_path)
