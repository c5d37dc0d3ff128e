"""Batches that fit into a memory, ratios, and the table of them."""

import hypothesis
from hypothesis import strategies

from mp_loop.bench import choices, measure, results_table


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
    measure.summarize(results)
    assert results["first"]["time_ratio"]["median"] == 1.0
    assert results["other"]["time_ratio"] == {"median": 0.25, "min": 0.25, "max": 0.25}
    assert results["other"]["milliseconds_per_step"] == 1000.0
    assert results["other"]["examples_per_second"] == 20.0
    assert results["other"]["step_bytes_ratio"] == 0.25
    text = results_table.markdown("cnn", results)
    assert "| other " in text and "0.250 (0.25 to 0.25)" in text
    assert "broken ended with 1: out of memory" in text


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

    monkeypatch.setattr(measure, "_start", Step)
    arms = choices.parse_arms("keras:float32,custom:bfloat16")
    results = measure.measure(
        "cnn", arms, measure.BenchmarkPlan(1, 0.0, same_memory=True)
    )
    sizes = {name: result["batch_size"] for name, result in results.items()}
    assert sizes == {"keras:float32": 128, "custom:bfloat16": 256}
