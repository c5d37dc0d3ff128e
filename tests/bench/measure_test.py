"""Batches that fit into a memory, ratios, and the table of them."""

import hypothesis
import pytest
from hypothesis import strategies

from mp_loop.bench import arm_process, choices, measure, results_table, workloads


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

    size = measure.largest_batch(step_mib, budget, start)
    assert size == 1 or fixed + slope * size <= budget
    assert fixed + slope * (size + max(1, size // 16)) > budget
    assert len(asked) <= 32


def result(blocks, batch_size=10, step_bytes=100):
    return {
        "batch_size": batch_size,
        "blocks": blocks,
        "step_bytes": step_bytes,
        "process_bytes": 2 * step_bytes,
        "allocated_bytes": 3 * step_bytes,
        "graph_nodes": None,
        "trace_seconds": None,
        "until_first_step_seconds": 1.0,
    }


def test_ratios_are_paired_and_of_an_example():
    results = {
        "broken": {"failed": "broken ended with 1: out of memory"},
        "first": result([1.0, 2.0, 4.0]),
        # Half the time in every round, with twice the batch.
        "other": result([0.5, 1.0, 2.0], batch_size=20, step_bytes=25),
    }
    measure.summarize(results)
    assert results["first"]["time_ratio"]["median"] == 1.0
    assert results["other"]["time_ratio"] == {"median": 0.25, "min": 0.25, "max": 0.25}
    assert results["other"]["milliseconds_per_step"] == 1000.0
    assert results["other"]["examples_per_second"] == 20.0
    assert results["other"]["step_bytes_ratio"] == 0.25
    text = results_table.markdown("cnn", results)
    assert "| other " in text and "0.250 (0.25 to 0.25)" in text
    assert "broken ended with 1: out of memory" in text
    results["other"]["allocated_bytes"] = None  # as of PyTorch
    measure.summarize(results)
    assert results["first"]["allocated_bytes_ratio"] == 1.0
    assert results["other"]["allocated_bytes_ratio"] is None
    assert "None" not in results_table.markdown("cnn", results)


def test_there_is_no_ratio_to_a_step_that_needs_no_memory():
    results = {"a": result([1.0], step_bytes=0), "b": result([1.0], step_bytes=5)}
    measure.summarize(results)
    assert [r["step_bytes_ratio"] for r in results.values()] == [None, None]
    rows = results_table.markdown("mlp_tiny", results).splitlines()
    assert "None" not in rows[-2]


class Step:
    """Takes 2 MiB an example in float32, 1 MiB in 16 bits."""

    begun = []  # what all of them did, in order
    failing = {}  # when, by precision

    def __init__(self, task):
        self.task, self.name = task, task.arm.name
        mib = 2 if task.arm.precision == "float32" else 1
        step = task.batch_size * mib * 2**20
        self.facts = {"step_bytes": step, "process_bytes": 2 * step}
        self._say("start")

    def _say(self, what):
        self.begun.append((what, self.name))
        if self.failing.get(self.task.arm.precision) == what:
            raise arm_process.ArmFailed(f"{self.name} ended with -9: nothing")

    def wait_until_warm(self):
        self._say("wait")

    def time(self, steps):
        self._say("time")
        return float(steps)

    def close(self):
        self._say("close")


@pytest.fixture
def begun(monkeypatch):
    monkeypatch.setattr(arm_process, "ArmProcess", Step)
    monkeypatch.setattr(Step, "begun", [])
    return Step


CNN = workloads.WORKLOADS["cnn"]
ARMS = choices.parse_arms("keras:float32,custom:float16,custom:bfloat16")


def test_other_arms_may_take_the_memory_of_the_first(begun):
    plan = measure.BenchmarkPlan(1, 0.0, same_memory=True)
    results = measure.measure("cnn", CNN, [ARMS[0], ARMS[2]], plan)
    sizes = {name: result["batch_size"] for name, result in results.items()}
    assert sizes == {"keras:float32": 128, "custom:bfloat16": 256}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("when", ["wait", "time"])
def test_an_arm_that_fails_does_not_stop_the_others(begun, monkeypatch, when, together):
    monkeypatch.setattr(Step, "failing", {"float16": when})
    told = []
    plan = measure.BenchmarkPlan(2, 0.0, together=together)
    results = measure.measure("cnn", CNN, ARMS, plan, told.append)
    assert [len(r.get("blocks", ())) for r in results.values()] == [2, 0, 2]
    assert results["custom:float16"] == {
        "failed": "custom:float16 ended with -9: nothing"
    }
    assert results["custom:float16"]["failed"] in told
    assert [name for what, name in begun.begun if what == "close"] == [
        arm.name for arm in reversed(ARMS)
    ]


def test_arms_may_start_together_and_are_timed_one_at_a_time(begun):
    measure.measure("cnn", CNN, ARMS, measure.BenchmarkPlan(1, 0.0, together=True))
    what = [what for what, _ in begun.begun]
    assert what == ["start"] * 3 + ["wait"] * 3 + ["time"] * 6 + ["close"] * 3
    begun.begun.clear()
    measure.measure("cnn", CNN, ARMS, measure.BenchmarkPlan(1, 0.0))
    what = [what for what, _ in begun.begun]
    assert what == ["start", "wait"] * 3 + ["time"] * 6 + ["close"] * 3


def test_batches_are_those_of_the_device_unless_one_is_given():
    def batch(name, **plan):
        made = measure.BenchmarkPlan(1, 0.0, **plan)
        return made.task(ARMS[0], workloads.WORKLOADS[name]).batch_size

    assert batch("resnet50_224") == 8
    assert batch("resnet50_224", on_gpu=True) == 128
    assert batch("resnet50_224", on_gpu=True, batch_size=3) == 3
    assert batch("cnn", on_gpu=True) == 128  # the same everywhere
    assert batch("update20", batch_size=3) == 1  # has no batch
