"""The benchmark: what it accepts, what it works out, and a run from end to end."""

import json
import subprocess
import sys
import types

import pytest

from mp_loop import benchmark
from mp_loop.bench import measure


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


def test_a_benchmark_that_is_stopped_keeps_what_is_done(monkeypatch, tmp_path):
    real = measure.measure

    def interrupted(workload, *arguments, **others):
        if workload == "update20":
            raise KeyboardInterrupt
        return real(workload, *arguments, **others)

    monkeypatch.setattr(measure, "measure", interrupted)
    flag_values = types.SimpleNamespace(
        arms="custom:float16",
        workloads="mlp_tiny,update20",
        repeats=1,
        block_seconds=0.0,
        memory_budget_mib=0.0,
        same_memory=False,
        output_dir=str(tmp_path / "out"),
    )
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(None, flag_values)
    written = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert list(written["workloads"]) == ["mlp_tiny"]
    assert "### mlp_tiny" in (tmp_path / "out/benchmark.md").read_text()
