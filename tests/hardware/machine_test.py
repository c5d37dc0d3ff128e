"""The machine at hand, whatever it is."""

import math

import pytest
import tensorflow as tf

import mp_loop
from mp_loop.config import choices
from mp_loop.hardware import capability, devices, machine


def test_the_devices_are_tensorflows():
    found = machine.find()
    assert found[0].kind == "CPU"
    # One entry for all processors, and one for each GPU.
    assert len(found) == 1 + len(tf.config.list_physical_devices("GPU"))
    assert all(device.model for device in found)


def test_every_type_is_timed_and_auto_follows():
    here = machine.find()
    timings = machine.measure(here)
    used = capability.computing(here)
    assert list(timings) == list(dict.fromkeys(device.model for device in used))
    for found in timings.values():
        assert len(found) == 2
        for timing in found:
            assert set(timing.seconds) == set(choices.PRECISIONS)
            assert all(0 < s < math.inf for s in timing.seconds.values())
    assert machine.measure(here) == timings  # once in a process
    chosen = capability.choose(machine.with_ratios(here, timings))
    assert mp_loop.best_precision() == chosen.precision


def test_the_worst_ratio_counts_for_each_model():
    timing = machine.Timing
    timings = {
        "a": [
            timing("x", {"float32": 2.0, "bfloat16": 1.0, "float16": 4.0}, 1.0),
            timing("y", {"float32": 1.0, "bfloat16": 0.75, "float16": 1.0}, 1.0),
        ]
    }
    gpus = [capability.Device("GPU", f"GPU:{i}", m) for i, m in enumerate("aab")]
    first, second, third = machine.with_ratios(gpus, timings)
    assert first.ratios == second.ratios == {"bfloat16": 0.75, "float16": 2.0}
    assert third.ratios == {}


def test_float16_warns_on_a_cpu_alone():
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    assert (machine.warning("float16") is None) == on_gpu
    assert machine.warning("float32") is None


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "fast"])
def test_a_type_is_timed_as_a_step_multiplies_it(monkeypatch, slow):
    monkeypatch.setattr(devices, "multiplies_slowly", lambda precision: slow)
    run = machine._differentiated(tf.matmul, [(4, 4)] * 2, "bfloat16", on_cpu=True)
    graph = run.get_concrete_function().graph
    products = [op for op in graph.get_operations() if op.type == "MatMul"]
    assert len(products) == 3
    assert {op.outputs[0].dtype for op in products} == {
        tf.float32 if slow else tf.bfloat16
    }
