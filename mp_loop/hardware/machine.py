"""What pays on this machine: the rules of `capability`, applied to its devices.

    best_precision()                   # "bfloat16", say
    slowdown_note("float16")        # one line, or None
    examine()                          # what `python -m mp_loop.doctor` prints

Each of them may time a few products first, which takes seconds, once in a process.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import tensorflow as tf

from mp_loop.config import json_values
from mp_loop.hardware import (
    capability,
    cuda_driver,
    devices,
    environment,
    missing_gpu,
    processor,
    product_timing,
)

# The instructions that decide about bfloat16 and float16, or are often asked for.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "bf16")


def best_precision() -> str:
    """Returns what `--precision=auto` stands for on this machine; takes seconds."""
    found = devices.find()
    measured = product_timing.with_ratios(found, product_timing.measure(found))
    return capability.choose(measured).precision


def slowdown_note(precision: str) -> str | None:
    """Returns `capability.slowdown_note` for this machine; measures if it must."""
    found = devices.find()
    if capability.must_measure(found, precision):
        found = product_timing.with_ratios(found, product_timing.measure(found))
    return capability.slowdown_note(found, precision)


def examine() -> dict[str, json_values.Json]:
    """Examines the machine.

    Returns:
      A JSON object: `devices`, `timings` by the model of the device, `software`,
      `auto` (what `--precision=auto` chooses), `no_gpu` (why TensorFlow sees none:
      sentences; empty where it sees one) and `notes` (sentences).
    """
    found = devices.find()
    cards = cuda_driver.ask().cards
    timings = product_timing.measure(found)
    found = product_timing.with_ratios(found, timings)
    return {
        "devices": [describe(device, cards) for device in found],
        "timings": {
            model: [dataclasses.asdict(each) for each in of_model]
            for model, of_model in timings.items()
        },
        "software": environment.software(),
        "auto": dataclasses.asdict(capability.choose(found)),
        "no_gpu": [] if devices.has_gpu() else missing_gpu.reasons(missing_gpu.find()),
        "notes": notes(found),
    }


def describe(
    device: capability.Device, cards: Sequence[cuda_driver.Card] = ()
) -> dict[str, json_values.Json]:
    """Returns the facts about a device and what each 16-bit type gains on it.

    Args:
      device: the device.
      cards: those that the driver offers, among which a GPU finds its memory.
    """
    instructions, of_gpu = device.instructions, device.compute_capability
    # TensorFlow may order or leave out cards, but those of one model are alike.
    memory = {card.memory_bytes for card in cards if card.model == device.model}
    return {
        "name": device.name,
        "model": device.model,
        "cores": processor.usable_cores() if device.kind == "CPU" else None,
        "memory_bytes": memory.pop() if len(memory) == 1 else None,
        "compute_capability": of_gpu,
        "tensor_cores": of_gpu and capability.tensor_cores(of_gpu),
        "instructions": instructions
        and [name for name in _INSTRUCTIONS if name in instructions],
        "gains": {
            precision: dataclasses.asdict(capability.gains(device, precision))
            for precision in capability.PREFERRED
        },
    }


def notes(found: Sequence[capability.Device]) -> list[str]:
    """Returns what a user should know about these devices, each in one sentence."""
    said = []
    gpus = [device for device in found if device.kind == "GPU"]
    if len({device.model for device in gpus}) > 1:
        said.append("The GPUs differ: the weakest decides for all of them.")
    if any((gpu.compute_capability or (0, 0)) >= (8, 0) for gpu in gpus):
        on = tf.config.experimental.tensor_float_32_execution_enabled()
        said.append(
            f"TF32 is {'on' if on else 'off'}: float32 products "
            f"{'round their inputs to 10 bits of mantissa' if on else 'are exact'}."
        )
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" and not gpus:
        said.append("TF_ENABLE_ONEDNN_OPTS=0 turns the fast processor kernels off.")
    return said
