"""The doctor, in a real process; its layout on a machine that is not here."""

import json
import pathlib
import subprocess
import sys

import pytest

from mp_loop import doctor
from mp_loop.hardware import capability, cuda_driver, devices, machine, product_timing

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
    here = devices.find()
    assert [d["name"] for d in findings["devices"]] == [d.name for d in here]
    assert findings["software"]["tensorflow"]
    assert findings["timings"]
    assert findings["auto"]["precision"] in product_timing.PRECISIONS
    text = doctor.report(findings)
    assert f"--precision=auto chooses {findings['auto']['precision']}" in text
    assert bool(findings["no_gpu"]) != devices.has_gpu()
    assert ("why TensorFlow sees no GPU" in text) != devices.has_gpu()
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
CARD = cuda_driver.Card("model (8, 0)", (8, 0), 42_298_834_944)


def test_the_report_of_a_gpu_machine():
    devices = [CPU, gpu(0, 7, 5), gpu(1, 8, 0)]
    findings = {
        "devices": [machine.describe(device, [CARD]) for device in devices],
        "timings": {},
        "software": {"nvidia_libraries": {"nvidia-cudnn-cu12": "9.3"}, "onednn": True},
        "auto": {"precision": "float16", "reason": capability.choose(devices).reason},
        "no_gpu": [],
        "notes": ["A note."],
    }
    said = " ".join(doctor.report(findings).split())
    for part in (
        "GPU:0 model (7, 5), compute capability 7.5, tensor cores for float16",
        "compute capability 8.0, 39.4 GiB, tensor cores for float16, bfloat16, TF32",
        "bfloat16 no: bfloat16 needs compute capability 8.0, not 7.5",
        "float16 faster: tensor cores multiply float16 (compute capability 8.0)",
        "nvidia libraries nvidia-cudnn-cu12 9.3",
        "onednn on",
        "A note.",
        "--precision=auto chooses float16: tensor cores",
    ):
        assert part in said, said
