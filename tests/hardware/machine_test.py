"""What pays on this machine, and what its user should know."""

import pytest
import tensorflow as tf

from mp_loop.hardware import capability, cuda_driver, machine


def test_float16_warns_on_a_cpu_alone():
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    assert (machine.slowdown_note("float16") is None) == on_gpu
    assert machine.slowdown_note("float32") is None


def gpu(index, *compute_capability):
    model = f"model {compute_capability}"
    return capability.Device("GPU", f"GPU:{index}", model, compute_capability)


CPU = capability.Device("CPU", "CPU:0", "a CPU")
NOTES = {
    "different GPUs": ([CPU, gpu(0, 8, 0), gpu(1, 7, 0)], {}, "The GPUs differ"),
    "TF32": ([CPU, gpu(0, 8, 0)], {}, "TF32 is o"),
    "no oneDNN": ([CPU], {"TF_ENABLE_ONEDNN_OPTS": "0"}, "fast processor kernels off"),
    "nothing": ([CPU], {}, None),
    "an old GPU": ([CPU, gpu(0, 7, 5)], {}, None),
}


@pytest.mark.parametrize("name", NOTES)
def test_notes(name, monkeypatch):
    devices, around, said = NOTES[name]
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    for variable, value in around.items():
        monkeypatch.setenv(variable, value)
    found = machine.notes(devices)
    assert (found == []) if said is None else any(said in note for note in found)


H100 = cuda_driver.Card("model (9, 0)", (9, 0), 80 << 30)
SMALLER = cuda_driver.Card("model (9, 0)", (9, 0), 40 << 30)
OTHER = cuda_driver.Card("another", (7, 5), 16 << 30)


@pytest.mark.parametrize(
    "cards, memory",
    [((OTHER, H100, H100), 80 << 30), ((OTHER,), None), ((H100, SMALLER), None)],
    ids=["two alike", "not offered", "two that differ"],
)
def test_a_gpu_has_its_memory_and_tensor_cores(cards, memory):
    described = machine.describe(gpu(0, 9, 0), cards)
    assert described["memory_bytes"] == memory
    assert described["tensor_cores"] == ("float16", "bfloat16", "TF32")
    processor = machine.describe(CPU, cards)
    assert processor["memory_bytes"] is processor["tensor_cores"] is None
