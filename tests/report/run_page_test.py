"""The page of a run: complete, self-contained, well-formed."""

import json
import re

import pytest

from mp_loop.config import settings
from mp_loop.report import run_page
from mp_loop.run import run_folder
from tests.support.pages import read_page


def line(step, skipped=0, **more):
    return {
        "step": step,
        "applied_steps": step - skipped,
        "skipped_steps": skipped,
        "loss": 2.0 / step,
        "learning_rate": 0.1,
        "loss_scale": 2.0 ** (15 - skipped),
        "grad_norm": 1.0,
        "examples_per_second": 100.0,
        **more,
    }


SUMMARY = {
    "eval_accuracy": 0.875,
    "eval_loss": 0.5,
    "steps": 30,
    "skipped_steps": 2,
    "final_loss_scale": 2.0**13,
    "milliseconds_per_step": 12.5,
    "examples_per_second": 1234.0,
    "peak_memory_bytes": 512 * 2**20,
}


def look(step, headroom):
    values = {"headroom": headroom, "underflow": 0.05, "inf": 0, "nan": 0}
    layers = [{"name": f"conv_{i}", "activations": values} for i in range(3)]
    layers[1]["activation_grads"] = values | {"inf": 3}
    return {"step": step, "layers": layers}


@pytest.fixture
def folder(tmp_path):
    """A run folder as a run leaves it."""
    config = settings.Config.of(epochs=7, output_dir=str(tmp_path / "run"))
    run = run_folder.RunFolder.create(config.records.output_dir, config.to_flagfile())
    run.log(line(10))
    run.log(line(20, 2, overflowed={"a/kernel": 2, "b/bias": 1}, loss=float("inf")))
    run.log(line(30, 2))
    run.log_evaluation(30, {"eval_loss": 0.5, "eval_accuracy": 0.875})
    run.close()
    return tmp_path / "run"


def test_a_finished_run(folder):
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    path = run_page.write(folder)
    assert path == str(folder / "report.html")
    page, said = read_page(path)
    for part in (
        "cnn on fashion_mnist_mini", "float16, custom loop", "0.8750", "2^13", "512",
        "1,234", "training", "evaluation", "Evaluation accuracy",
        "Loss scale (crosses: skipped", "Gradient norm", "Examples/s", "Learning rate",
        "a/kernel, b/bias", "Environment", "tensorflow",
    ):  # fmt: skip
        assert part in said, part
    assert page.values.count("cross") == 1
    assert "step 20: 2 skipped" in said
    assert "not finished" not in said and "Numerics" not in said
    changed = re.findall(
        r"<tr class=changed><td>(\w+)", (folder / "report.html").read_text()
    )
    assert changed == ["epochs", "output_dir"]


def test_a_regression_stands_beside_constant_answers(folder):
    summary = {"eval_mean_absolute_error": 10136.36, "eval_loss": 0.5, "steps": 30}
    constants = {"mean_baseline": 54242.01, "median_baseline": 53023.04}
    (folder / "summary.json").write_text(json.dumps(summary | constants))
    said = read_page(run_page.write(folder))[1]
    assert (
        "Mean absolute error 10,136.4 (always the mean of the training targets: "
        "54,242; their median: 53,023) after 30 steps." in said
    )
    assert "Against Keras' loop: not measured." in said


def test_a_run_that_has_not_finished_says_so(folder):
    assert (
        "has not finished: its last line is of step 30"
        in read_page(run_page.write(folder))[1]
    )
    said = read_page(run_page.write(folder, "Training diverged: <why>"))[1]
    assert "Training diverged: <why>" in said and "not finished" not in said


def test_numerics_are_shown_where_they_are(folder):
    looks = [look(step, 16.0 - step / 10) for step in (0, 10, 20)]
    text = "".join(json.dumps(one) + "\n" for one in looks)
    (folder / "numerics.jsonl").write_text(text + '{"step": 30, "lay')
    page, said = read_page(run_page.write(folder))
    assert "Activations: doublings left to 65504 (worst: 14)" in said
    assert "Scaled gradients: share lost (worst: 0.05)" in said
    assert page.tags.count("rect") == 3 * 3 * 3
    assert page.values.count("cross") == 1 + 3 + 3  # a skip; inf in both gradient maps
    (folder / "numerics.jsonl").write_text('[1]\nnonsense\n{"step": 1}\n')
    said = read_page(run_page.write(folder))[1]
    assert "Numerics" not in said and "numerics.jsonl is damaged" in said


HOSTILE = [
    pytest.param("</title><script>alert(1)</script>", id="a script"),
    pytest.param("{{title}} {{body}}", id="the template's own words"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_an_empty_run_and_hostile_names(tmp_path, name):
    config = settings.Config.of(
        model=name, dataset="a&b", output_dir=str(tmp_path / "r")
    )
    run_folder.RunFolder.create(config.records.output_dir, config.to_flagfile()).close()
    page, said = read_page(run_page.write(config.records.output_dir))
    assert page.tags.count("script") == 1
    assert f"{name} on a&b" in said and "Nothing was recorded." in said


def test_a_damaged_run_is_told(folder):
    (folder / "metrics.jsonl").write_text('nonsense\n{"step": 1}\n')
    said = read_page(run_page.write(folder))[1]
    assert "metrics.jsonl is damaged and partly left out: line 1" in said
    assert "its last line is of step 1" in said


def test_training_and_evaluation_share_a_chart_of_the_metric(folder):
    assert "Evaluation accuracy" in read_page(run_page.write(folder))[1]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line(40, 2, accuracy=0.5)) + "\n")
    said = read_page(run_page.write(folder))[1]
    assert "Accuracy" in said and "Evaluation accuracy" not in said
