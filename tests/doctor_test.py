"""The doctor, in a real process; its notes and layout on machines of the table."""

import json
import pathlib
import subprocess
import sys

import pytest

from mp_loop import doctor
from mp_loop.config import choices
from mp_loop.hardware import capability, machine

ROOT = pathlib.Path(__file__).parents[1]


def process(*words):
    return subprocess.run(
        [sys.executable, "-m", "mp_loop.doctor", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_it_examines_this_machine():
    done = process("--json")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    here = machine.find()
    assert [d["name"] for d in findings["devices"]] == [d.name for d in here]
    assert findings["software"]["tensorflow"]
    assert findings["timings"]
    assert findings["auto"]["precision"] in choices.PRECISIONS
    text = doctor.report(findings)
    assert f"--precision=auto chooses {findings['auto']['precision']}" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("words", [["--epochs=2"], ["now"]], ids=["a flag", "a word"])
def test_it_takes_no_flags_of_experiments(words):
    done = process(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1


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
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: around.get("driver"))
    found = doctor.notes(devices)
    assert (found == []) if said is None else any(said in note for note in found)


def test_the_report_of_a_gpu_machine():
    devices = [CPU, gpu(0, 7, 5), gpu(1, 8, 0)]
    findings = {
        "devices": [doctor._facts(device) for device in devices],
        "timings": {},
        "software": {"nvidia_libraries": {"nvidia-cudnn-cu12": "9.3"}, "onednn": True},
        "auto": {"precision": "float16", "reason": capability.choose(devices).reason},
        "notes": ["A note."],
    }
    said = " ".join(doctor.report(findings).split())
    for part in (
        "GPU:0 model (7, 5), compute capability 7.5",
        "bfloat16 no: bfloat16 needs compute capability 8.0, not 7.5",
        "float16 faster: tensor cores multiply float16 (compute capability 8.0)",
        "nvidia libraries nvidia-cudnn-cu12 9.3",
        "onednn on",
        "A note.",
        "--precision=auto chooses float16: tensor cores",
    ):
        assert part in said, said
