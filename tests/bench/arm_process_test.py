"""A process of the benchmark, and what its first steps tell."""

import dataclasses
import os
import stat
import sys

import pytest

from mp_loop.bench import arm_process, memory, tasks, workloads
from mp_loop.config import comparison_arms
from mp_loop.hardware import devices

ARM = comparison_arms.Arm("custom", "bfloat16", ("xla",))
TASK = tasks.Task(ARM, workloads.WORKLOADS["mlp_tiny"].tiny(), 2, on_device=True)


def test_a_task_travels_as_text():
    assert tasks.Task.from_json(TASK.to_json()) == TASK


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A program in the place of Python."""

    def make(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setattr(sys, "executable", str(path))
        return arm_process.ArmProcess(TASK)

    return make


def test_an_arm_takes_gpu_memory_as_it_needs_it(stand_in, monkeypatch):
    script = 'echo "{\\"growth\\": \\"$TF_FORCE_GPU_ALLOW_GROWTH\\"}"'
    for given, growth in ((None, "true"), ("false", "false")):
        monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
        if given:
            monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", given)
        process = stand_in(script)
        process.wait_until_warm()
        assert process.facts == {"growth": growth}
        process.close()
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "false"


def test_an_arm_may_log_more_than_a_pipe_holds_and_says_why_it_ended(stand_in):
    process = stand_in("head -c 300000 /dev/zero >&2; echo {}; echo no memory >&2")
    process.wait_until_warm()
    with pytest.raises(arm_process.ArmFailed, match="custom:.* with 0: .*no memory"):
        process.time(3)
    process.close()


def test_an_arm_that_compiles_for_too_long_is_given_up(stand_in, monkeypatch):
    monkeypatch.setitem(globals(), "TASK", dataclasses.replace(TASK, start_seconds=0.2))
    process = stand_in("exec sleep 60")
    with pytest.raises(arm_process.ArmFailed, match="was not warm after 0.2 s"):
        process.wait_until_warm()
    process.close()
    process = stand_in("echo {}; exec sleep 60")
    process.task = dataclasses.replace(TASK, start_seconds=50.0)
    process.wait_until_warm()
    process.close()


class Allocator:
    """A GPU's memory: 100 bytes are held, a step adds 50, the first one more."""

    def __init__(self, monkeypatch):
        self.steps, self._peak = [], 0
        monkeypatch.setattr(devices, "has_gpu", lambda: True)
        config = "tensorflow.config.experimental."
        monkeypatch.setattr(config + "get_memory_info", self.info)
        monkeypatch.setattr(config + "reset_memory_stats", self.reset)
        monkeypatch.setattr(memory, "host_copies", lambda run: None)
        self.held = 7

    def info(self, device):
        assert device == "GPU:0"
        return {"current": self.held, "peak": self._peak}

    def reset(self, device):
        assert device == "GPU:0"
        self._peak = self.held

    def run(self, count):
        self.held = 100
        self._peak = max(self._peak, 150 if self.steps else 900)
        self.steps.append(count)


def test_on_a_gpu_memory_is_the_allocators_and_the_first_batch_is_whole(monkeypatch):
    allocator, small = Allocator(monkeypatch), []

    def make(small_first):
        small.append(small_first)
        return workloads.Program(allocator.run, 10, 1.0)

    used = memory.of_framework("tensorflow")
    _, facts = arm_process.warm_up(make, used)
    assert small == [False] and allocator.steps == [1, 3, 3]
    assert facts["step_bytes"] == 50 and facts["process_bytes"] == 150 - 7
    assert facts["host_copies_in_three_steps"] is None
    assert facts["until_first_step_seconds"] >= facts["first_step_seconds"]


@pytest.mark.peers
def test_pytorch_compiles_too():
    pytest.importorskip("torch")
    arm = comparison_arms.Arm("torch", "bfloat16", ("compile", "tf32"))
    process = arm_process.ArmProcess(dataclasses.replace(TASK, arm=arm))
    process.wait_until_warm()
    assert process.facts["graph_nodes"] is None
    assert process.time(3) > 0
    process.close()
