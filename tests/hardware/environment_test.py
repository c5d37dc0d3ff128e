"""What is written down about the machine of a run."""

import json
import os
import pathlib
import subprocess
import sys

import tensorflow as tf

from mp_loop.hardware import devices, environment


def test_environment_names_no_host_and_no_home():
    text = json.dumps(environment.environment())
    assert os.uname().nodename not in text
    assert str(pathlib.Path.home()) not in text


def test_peak_memory_is_in_bytes_and_remembers():
    code = """
from mp_loop.hardware import environment
before = environment.peak_memory_bytes()
block = b"x" * (256 << 20)
peak = environment.peak_memory_bytes()
del block
print(before, peak, environment.peak_memory_bytes())
"""
    held = b"x" * (128 << 20)  # Not the child's.
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    del held
    before, peak, after = map(int, said.stdout.split())
    # An interpreter takes some 10 MiB; Linux counts pages in batches.
    assert 4 << 20 < before < 64 << 20
    assert abs(peak - before - (256 << 20)) < 2 << 20
    assert abs(after - peak) < 1 << 20


def test_peak_memory_of_the_gpu_that_held_most(monkeypatch):
    assert (environment.peak_gpu_memory_bytes() is None) == (not devices.has_gpu())
    gpus = [tf.config.LogicalDevice(f"/device:GPU:{i}", "GPU") for i in range(2)]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
    peaks = {"GPU:0": {"peak": 5}, "GPU:1": {"peak": 7}}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", peaks.get)
    assert environment.peak_gpu_memory_bytes() == 7
