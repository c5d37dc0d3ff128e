"""What pays on this machine, and what its user should know."""

import pytest
import tensorflow as tf

from mp_loop.hardware import capability, environment, machine


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
    "hidden": ([CPU], {"CUDA_VISIBLE_DEVICES": "-1"}, "hides every GPU"),
    "no oneDNN": ([CPU], {"TF_ENABLE_ONEDNN_OPTS": "0"}, "fast processor kernels off"),
    "driver alone": ([CPU], {"driver": "550.54.15"}, "pip install 'mp_loop[gpu]'"),
    "nothing": ([CPU], {}, None),
    "an old GPU": ([CPU, gpu(0, 7, 5)], {}, None),
}


@pytest.mark.parametrize("name", NOTES)
def test_notes(name, monkeypatch):
    devices, around, said = NOTES[name]
    for variable in ("CUDA_VISIBLE_DEVICES", "TF_ENABLE_ONEDNN_OPTS"):
        monkeypatch.delenv(variable, raising=False)
        if variable in around:
            monkeypatch.setenv(variable, around[variable])
    monkeypatch.setattr(environment, "nvidia_driver", lambda: around.get("driver"))
    found = machine.notes(devices)
    assert (found == []) if said is None else any(said in note for note in found)
