"""The benchmark: what it accepts, what it works out, and a run from end to end."""

import json
import subprocess
import sys
import types

import hypothesis
import pytest
from hypothesis import strategies

from mp_loop import benchmark
from mp_loop.bench import workloads
from mp_loop.config import errors


def test_arms_are_read():
    arms = benchmark.parse_arms("keras:float32, custom:bfloat16+recompute+xla")
    assert arms == [
        benchmark.Arm("keras", "float32"),
        benchmark.Arm("custom", "bfloat16", ("recompute", "xla")),
    ]
    assert arms[1].name == "custom:bfloat16+recompute+xla"


BAD_ARMS = {
    "unknown loop": ("keras:float32,jax:float16", "'jax:float16'"),
    "unknown precision": ("keras:float8", "'keras:float8'"),
    "unknown option": ("custom:float16+fast", "'custom:float16.fast'"),
    "empty": ("", "''"),
    "twice": ("custom:float16,custom:float16", "names custom:float16 twice"),
    "cannot recompute": ("keras:float16+recompute", "keras cannot recompute"),
    "torch with options": ("torch:float16+xla", "torch takes no options"),
}


@pytest.mark.parametrize("name", BAD_ARMS)
def test_bad_arms_are_refused(name):
    text, said = BAD_ARMS[name]
    with pytest.raises(errors.UsageError, match=f"--arms .*{said}"):
        benchmark.parse_arms(text)


BAD_WORKLOADS = {
    "unknown": ("resnet20,lenet", "custom:float16", "not 'lenet'"),
    "no model": ("update20", "fit:float16", "update20 does not run on fit:float16"),
    "no update": ("cnn", "stream:float16", "cnn does not run on stream:float16"),
    "update with options": ("update20", "custom:float16+xla", "does not run on"),
}


@pytest.mark.parametrize("name", BAD_WORKLOADS)
def test_bad_workloads_are_refused(name):
    text, arms, said = BAD_WORKLOADS[name]
    with pytest.raises(errors.UsageError, match=f"--workloads .*{said}"):
        benchmark.parse_workloads(text, benchmark.parse_arms(arms))


@hypothesis.given(
    fixed=strategies.floats(0, 200),
    slope=strategies.floats(0.01, 50),
    budget=strategies.floats(1, 5000),
    start=strategies.integers(1, 512),
)
def test_the_largest_batch_fits_and_a_larger_one_does_not(fixed, slope, budget, start):
    asked = []

    def step_mib(size):
        asked.append(size)
        return fixed + slope * size

    size = benchmark.largest_batch(step_mib, budget, start)
    assert size == 1 or fixed + slope * size <= budget
    assert fixed + slope * (size + max(1, size // 16)) > budget
    assert len(asked) <= 32


def result(blocks, batch_size=10, step_bytes=100):
    return {
        "batch_size": batch_size,
        "blocks": blocks,
        "step_bytes": step_bytes,
        "process_bytes": 2 * step_bytes,
        "graph_nodes": None,
        "trace_seconds": None,
        "first_step_seconds": 1.0,
    }


def test_ratios_are_paired_and_of_an_example():
    results = {
        "broken": {"failed": "broken ended with 1: out of memory"},
        "first": result([1.0, 2.0, 4.0]),
        # Half the time in every round, with twice the batch.
        "other": result([0.5, 1.0, 2.0], batch_size=20, step_bytes=25),
    }
    benchmark.summarize(results)
    assert results["first"]["time_ratio"]["median"] == 1.0
    assert results["other"]["time_ratio"] == {"median": 0.25, "min": 0.25, "max": 0.25}
    assert results["other"]["milliseconds_per_step"] == 1000.0
    assert results["other"]["examples_per_second"] == 20.0
    assert results["other"]["step_bytes_ratio"] == 0.25
    text = benchmark.table("cnn", results)
    assert "| other " in text and "0.250 (0.25 to 0.25)" in text
    assert "broken ended with 1: out of memory" in text


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


def test_without_a_gpu_nothing_is_copied():
    from mp_loop.bench import keras_loops

    program = keras_loops.make("custom", "bfloat16", (), "mlp_tiny", 4)
    program.run(1)
    assert keras_loops.host_copies(program.run) == 0


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_batches_are_the_same_on_every_call(name):
    workload = workloads.WORKLOADS[name]
    inputs, labels = workload.batch(3)
    assert inputs.shape == (3, *workload.shape) and labels.shape == (3,)
    assert (workload.batch(3)[0] == inputs).all()


@pytest.mark.peers
@pytest.mark.parametrize(
    "name",
    [name for name, w in workloads.WORKLOADS.items() if w.has_peer and not w.is_update],
)
def test_pytorch_has_the_same_parameters(name):
    pytest.importorskip("torch")
    code = (
        f"from mp_loop import peer; model = peer.build_model('{name}');"
        "print(sum(p.numel() for p in model.parameters()))"
    )
    words = [sys.executable, "-c", code]
    theirs = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    from mp_loop.bench import keras_loops

    model = keras_loops.build_model(name)
    ours = sum(v.shape.num_elements() for v in model.trainable_variables)
    assert int(theirs) == ours


def test_other_arms_may_take_the_memory_of_the_first(monkeypatch):
    class Step:
        """Takes 2 MiB an example in float32, 1 MiB in bfloat16."""

        def __init__(self, arm, workload, batch_size):
            self.name = arm.name
            each = {"float32": 2, "bfloat16": 1}[arm.precision]
            step = batch_size * each * 2**20
            self.facts = {"step_bytes": step, "process_bytes": 2 * step}

        def time(self, steps):
            return float(steps)

        def close(self):
            pass

    monkeypatch.setattr(benchmark, "_start", Step)
    arms = benchmark.parse_arms("keras:float32,custom:bfloat16")
    results = benchmark.measure("cnn", arms, 1, 0.0, same_memory=True)
    sizes = {name: result["batch_size"] for name, result in results.items()}
    assert sizes == {"keras:float32": 128, "custom:bfloat16": 256}


def test_a_benchmark_that_is_stopped_keeps_what_is_done(monkeypatch, tmp_path):
    real = benchmark.measure

    def measure(workload, *arguments, **others):
        if workload == "update20":
            raise KeyboardInterrupt
        return real(workload, *arguments, **others)

    monkeypatch.setattr(benchmark, "measure", measure)
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
