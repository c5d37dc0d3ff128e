"""The benchmark: what it accepts, what it works out, and a run from end to end."""

import json
import subprocess
import sys

import pytest

from mp_loop import benchmark
from mp_loop.bench import measure
from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.hardware import devices


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "mp_loop.benchmark", *words],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_from_end_to_end(tmp_path):
    folder = tmp_path / "out"
    arms = "keras:float16,custom:bfloat16,floor:bfloat16,unscaled:float16"
    done = run(
        "--workloads=mlp_tiny",
        f"--arms={arms}",
        "--repeats=2",
        "--block_seconds=0.01",
        "--start_together",
        "--tiny",
        "--batch_size=3",
        "--batches=device",
        f"--output_dir={folder}",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((folder / "benchmark.json").read_text())
    results = written["workloads"]["mlp_tiny"]
    assert list(results) == arms.split(",")
    for figures in results.values():
        assert len(figures["blocks"]) == 2
        assert figures["milliseconds_per_step"] > 0
        assert figures["graph_nodes"] > 10
        assert figures["batch_size"] == 3
        assert figures["until_first_step_seconds"] > figures["first_step_seconds"]
    assert "--block_seconds=0.01" in written["command"]
    assert (folder / "benchmark.md").read_text() in done.stdout
    assert (folder / "benchmark.png").exists()


def test_updates_alone(tmp_path):
    done = run(
        "--workloads=update20",
        "--arms=keras:float16,custom:float16,stream:float16",
        "--repeats=1",
        "--block_seconds=0",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path):
    folder = tmp_path / "out"
    done = run("--arms=keras:float8", f"--output_dir={folder}")
    assert done.returncode == 2 and not folder.exists()
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def flags_of(**given):
    """The flags of a command line, before TensorFlow is needed."""
    words = [f"--{name}={value}" for name, value in given.items()]
    return app.parse(["benchmark", *words], benchmark.declare, of_experiment=False)[1]


CONTRADICTIONS = {
    "two budgets": (
        {"memory_budget_mib": 60, "same_memory": True},
        r"--memory_budget_mib \(60.0\) contradicts --same_memory.",
    ),
    "a search takes turns": (
        {"same_memory": True, "start_together": True},
        "--same_memory contradicts --start_together.",
    ),
    "fit reads from the host": (
        {"arms": "fit:float16", "batches": "device"},
        r"--batches \(device\): model.fit .* leave the arms of fit out",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_flags_that_contradict_each_other_are_refused(name, tmp_path):
    given, said = CONTRADICTIONS[name]
    folder = tmp_path / "out"
    with pytest.raises(errors.UsageError, match=f"^{said}"):
        benchmark.run(None, flags_of(output_dir=folder, **given))
    assert not folder.exists()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_benchmark_that_is_stopped_keeps_what_is_done(monkeypatch, tmp_path, on_gpu):
    """And batches are those of the device."""
    plans = []

    def interrupted(name, workload, arms, plan, say):
        if name == "update20":
            raise KeyboardInterrupt
        plans.append(plan)
        return {arm.name: {"failed": "it is not there"} for arm in arms}

    monkeypatch.setattr(devices, "has_gpu", lambda: on_gpu)
    monkeypatch.setattr(measure, "measure", interrupted)
    folder = tmp_path / "out"
    given = {"arms": "custom:float16", "workloads": "mlp_tiny,update20"}
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(None, flags_of(output_dir=folder, **given))
    written = json.loads((folder / "benchmark.json").read_text())
    assert list(written["workloads"]) == ["mlp_tiny"]
    assert "### mlp_tiny" in (folder / "benchmark.md").read_text()
    assert [plan.on_gpu for plan in plans] == [on_gpu]
