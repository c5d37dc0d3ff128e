"""One visit to a GPU: its time, its record, and every stage on a processor."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.gpu import plan, record, visit
from mp_loop.bench import choices, workloads

ROOT = pathlib.Path(__file__).parents[1]


def stage(name, *words, weight=1.0, kind="command", needs=""):
    return plan.Stage(name, kind, words, weight, needs)


SLEEPS = ("timeit", "-n1", "-r1", "import time; time.sleep(60)")


def test_a_stage_that_fails_or_is_cut_does_not_stop_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "_SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(visit, "_GRACE_SECONDS", 0.2)
    stages = [
        stage("fails", "json.tool", "nothing.json"),
        stage("hangs", *SLEEPS, weight=0.1),
        stage("misses", "json.tool", needs="needs --data_dir"),
        stage("runs", "timeit", "-n1", "-r1", "print('{folder}', {start} > 0)"),
    ]
    outcomes = visit.visit(stages, 12, tmp_path, "a command")
    said = [outcome.said for outcome in outcomes]
    assert said[0].startswith("failed (exit code ")
    assert said[1].startswith("cut after its ")
    assert said[2:] == ["not run: needs --data_dir", "done"]
    assert outcomes[1].seconds < 5
    text = (tmp_path / "record.md").read_text()
    assert all(words in text for words in said) and "a command" in text
    whole = json.loads((tmp_path / "visit.json").read_text())
    assert [found["outcome"] for found in whole["stages"].values()] == said
    printed = (tmp_path / "runs" / record.STDOUT).read_text()
    assert printed.startswith(f"{tmp_path / 'runs'} True")


def test_without_time_nothing_is_run(tmp_path):
    (outcome,) = visit.visit([stage("late", "platform")], 1, tmp_path, "a command")
    assert outcome.said == "not run: no time was left"
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize("tiny", [False, True])
def test_the_arms_are_the_benchmarks(tiny):
    found = plan.stages(plan.Inputs(tiny, "data", "a.keras", "folder"))
    assert not any(each.needs for each in found)
    assert len({each.name for each in found}) == len(found)
    arms = plan.TINY_ARMS if tiny else plan.ARMS
    assert len(choices.parse_arms(",".join(arms))) == len(arms)
    benchmarks = {each.name for each in found if each.kind == "benchmark"}
    assert {goal.workload for goal in plan.GOALS} <= benchmarks
    assert benchmarks <= set(workloads.WORKLOADS)
    wanted = {arm for goal in plan.GOALS for arm in (goal.arm, goal.against)}
    assert tiny or wanted <= set(arms)


def test_real_data_that_are_not_given_are_named():
    needs = {each.name: each.needs for each in plan.stages(plan.Inputs()) if each.needs}
    assert needs == {
        "vision": "needs --data_dir, --vision_model",
        "text": "needs --data_dir, --text_model",
    }


PARALLEL = "[gw0] [ 10%] PASSED tests/a_test.py::test_b[one, two] \n"
PLAIN = "tests/a_test.py::test_c[x y] FAILED                  [ 20%]\n"
SUMMARY = "FAILED tests/a_test.py::test_c[x y] - AssertionError: 1 PASSED\n"


def test_what_failed_is_named_although_the_tests_were_cut(tmp_path):
    (tmp_path / record.STDOUT).write_text(PARALLEL + PLAIN)
    found = {"counts": {"passed": 1, "failed": 1}}
    found["failed"] = ["tests/a_test.py::test_c[x y]"]
    assert record._tests(tmp_path) == found
    (tmp_path / record.STDOUT).write_text(PARALLEL + PLAIN + SUMMARY)
    assert record._tests(tmp_path) == found
    (tmp_path / record.STDOUT).write_text("collecting ...\n")
    assert record._tests(tmp_path) is None


def write_run(folder, loop, precision, accuracies, rate, **more):
    folder.mkdir(parents=True)
    summary = {"loop": loop, "precision": precision, "skipped_steps": 0, **more}
    summary |= {"eval_loss": 1.0, "eval_accuracy": accuracies[-1]}
    summary |= {"examples_per_second": 32 / 0.01, "milliseconds_per_step": 10.0}
    summary |= {"train_seconds": 1.0, "peak_memory_bytes": 2**30}
    (folder / "summary.json").write_text(json.dumps(summary))
    metrics, evaluations = [], []
    for i, accuracy in enumerate(accuracies, start=1):
        metrics.append({"step": 5 * i, "examples_per_second": rate})
        line = {"step": 5 * i, "eval_loss": 1.0, "eval_accuracy": accuracy}
        evaluations.append(line)
    for name, lines in (("metrics", metrics), ("evaluations", evaluations)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)


def test_time_to_accuracy_counts_training_alone(tmp_path):
    runs = tmp_path / "results"
    write_run(runs / "a", "keras", "float32", [0.5, 0.7, 0.8], 160.0)  # 1 s in 5 steps
    gpu = {"peak_gpu_memory_bytes": 2**28}
    write_run(runs / "b", "custom", "float16", [0.6, 0.79, 0.79], 320.0, **gpu)
    write_run(runs / "c", "custom", "bfloat16", [0.1, 0.1, 0.1], 320.0)
    found = record._runs(tmp_path)
    seconds = [line["seconds"] for line in found["keras:float32"]["evaluations"]]
    assert seconds == pytest.approx([1, 2, 3])
    table = record._of_runs(found, "vision")
    assert "training until accuracy 0.7800, s" in table
    rows = {line.split("|")[1].strip(): line.split("|")[-2].strip()
            for line in table.splitlines()}  # fmt: skip
    assert rows["keras:float32"] == "3.0" and rows["custom:float16"] == "1.0"
    assert rows["custom:bfloat16"] == "not reached"
    assert "256" in table


def test_goals_are_beside_what_was_measured():
    figures = {"blocks": [1.0], "milliseconds_per_step": 8.0, "step_bytes": 300}
    slower = {"blocks": [1.0], "milliseconds_per_step": 10.0, "step_bytes": 400}
    arms = {plan.OURS: figures, plan.KERAS: slower, plan.TORCH: {"failed": "no torch"}}
    lines = record.goals({plan.TRANSFORMER: arms}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert len(cells) == len(plan.GOALS)
    measured = [row for row in cells if "not measured" not in row]
    assert [row[3:] for row in measured] == [["<= 0.80", "0.80", "<= 0.75", "0.75"]]


def machine(*devices, no_gpu=()):
    facts = {"memory_bytes": None, "compute_capability": None, "cores": None}
    software = {"tensorflow": "2.21.0", "keras": "3.15.1", "python": "3.11.7"}
    software |= {"built_for_cuda": "12.5.1", "nvidia_driver": None}
    devices = [facts | device for device in devices]
    return {"devices": devices, "software": software, "no_gpu": list(no_gpu)}


CPU = {"name": "CPU:0", "model": "a CPU", "cores": 16}
GPU = {"name": "GPU:0", "model": "NVIDIA H100", "memory_bytes": 80 << 30}


def test_the_hardware_is_that_which_was_found():
    said = record.hardware(machine(CPU, GPU | {"compute_capability": [9, 0]}))
    assert said.startswith("GPU:0: NVIDIA H100, 80.0 GiB, compute capability 9.0; CPU")
    assert "tensorflow 2.21.0" in said and "nvidia driver" not in said
    said = record.hardware(machine(CPU, no_gpu=["No driver."]))
    assert said.startswith("**No GPU: these figures are of a processor.** No driver.")
    assert "was not examined" in record.hardware(None)


def run(folder, *words):
    return subprocess.run(
        [ROOT / "experiments/gpu/run.sh", *words, f"--output_dir={folder}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["0"], "--minutes (0.0) must be positive."),
        (["1", "--stages=lunch"], "--stages must be among: machine, default,"),
        (["1", "now"], "Unexpected positional arguments: now"),
    ],
    ids=["no time", "unknown stage", "a word"],
)
def test_bad_input_is_refused_at_once(words, said, tmp_path):
    done = run(tmp_path / "visit", *words)
    assert done.returncode == 2 and done.stderr.startswith(said), done.stderr
    assert not (tmp_path / "visit").exists()


KINDS = ("gpu_tests", plan.TRANSFORMER, "vision")


@pytest.mark.parametrize(
    "stages",
    [KINDS, pytest.param((), marks=pytest.mark.slow)],
    ids=["one of each kind", "all"],
)
def test_every_stage_runs_on_a_processor(stages, tmp_path):
    folder = tmp_path / "visit"
    done = run(folder, "30", "--tiny", f"--stages={','.join(stages)}")
    logs = "".join(path.read_text() for path in folder.rglob(record.LOG))
    assert done.returncode == 0, done.stdout + logs
    whole = json.loads((folder / "visit.json").read_text())
    assert whole["command"].startswith("python -m experiments.gpu.visit")
    expected = stages or [each.name for each in plan.stages(plan.Inputs(tiny=True))]
    assert list(whole["stages"]) == list(expected)
    for name, found in whole["stages"].items():
        assert found["outcome"] == "done" and found["found"], name
    text = (folder / "record.md").read_text()
    assert set(whole["stages"]["vision"]["found"]) == {
        "keras:float32",
        "custom:float16",
    }
    assert "vision/results/comparison.png" in text and "not measured" in text
