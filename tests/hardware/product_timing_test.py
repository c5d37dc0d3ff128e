"""Products, timed on the devices at hand."""

import math

import pytest
import tensorflow as tf

import mp_loop
from mp_loop.hardware import capability, devices, product_timing


def test_every_type_is_timed_and_auto_follows():
    here = devices.find()
    timings = product_timing.measure(here)
    used = capability.used_for_training(here)
    assert list(timings) == list(dict.fromkeys(device.model for device in used))
    for found in timings.values():
        assert len(found) == 2
        for product in found:
            assert set(product.seconds) == set(product_timing.PRECISIONS)
            assert all(0 < s < math.inf for s in product.seconds.values())
    assert product_timing.measure(here) == timings  # once in a process
    chosen = capability.choose(product_timing.with_ratios(here, timings))
    assert mp_loop.best_precision() == chosen.precision


def test_the_worst_ratio_counts_for_each_model():
    made = product_timing.Timing
    timings = {
        "a": [
            made("x", {"float32": 2.0, "bfloat16": 1.0, "float16": 4.0}, 1.0),
            made("y", {"float32": 1.0, "bfloat16": 0.75, "float16": 1.0}, 1.0),
        ]
    }
    gpus = [capability.Device("GPU", f"GPU:{i}", m) for i, m in enumerate("aab")]
    first, second, third = product_timing.with_ratios(gpus, timings)
    assert first.ratios == second.ratios == {"bfloat16": 0.75, "float16": 2.0}
    assert third.ratios == {}


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "fast"])
def test_a_type_is_timed_as_a_step_multiplies_it(monkeypatch, slow):
    monkeypatch.setattr(devices, "multiplies_slowly", lambda precision: slow)
    run = product_timing._differentiated(
        tf.matmul, [(4, 4)] * 2, "bfloat16", on_cpu=True
    )
    graph = run.get_concrete_function().graph
    products = [op for op in graph.get_operations() if op.type == "MatMul"]
    assert len(products) == 3
    assert {op.outputs[0].dtype for op in products} == {
        tf.float32 if slow else tf.bfloat16
    }
