"""Which precision pays where: a table of devices that need not be here."""

import pytest

from mp_loop.config import choices
from mp_loop.hardware import capability

NOTHING = frozenset({"avx2", "fma"})
AVX512_BF16 = NOTHING | {"avx512f", "avx512_bf16"}
AMX = AVX512_BF16 | {"amx_tile", "amx_bf16", "avx512_fp16"}


def gpu(major, minor, index=0, **ratios):
    name, model = f"GPU:{index}", f"model {major}.{minor}"
    return capability.Device("GPU", name, model, (major, minor), None, ratios)


def cpu(instructions=NOTHING, **ratios):
    return capability.Device("CPU", "CPU:0", "a CPU", None, instructions, ratios)


# (device, gain of float16, gain of bfloat16), by rule alone.
RULES = {
    "GPU 3.5": (gpu(3, 5), "no", "no"),
    "GPU 5.2": (gpu(5, 2), "no", "no"),
    "GPU 5.3": (gpu(5, 3), "memory", "no"),
    "GPU 6.0": (gpu(6, 0), "memory", "no"),
    "GPU 6.1": (gpu(6, 1), "memory", "no"),
    "GPU 7.0": (gpu(7, 0), "yes", "no"),
    "GPU 7.5": (gpu(7, 5), "yes", "no"),
    "GPU 8.0": (gpu(8, 0), "yes", "yes"),
    "GPU 8.9": (gpu(8, 9), "yes", "yes"),
    "GPU 9.0": (gpu(9, 0), "yes", "yes"),
    "GPU 10.0": (gpu(10, 0), "yes", "yes"),
    "GPU of another maker": (
        capability.Device("GPU", "GPU:0", "other"),
        "perhaps",
        "perhaps",
    ),
    "CPU": (cpu(), "no", "no"),
    "CPU with AVX512_BF16": (cpu(AVX512_BF16), "no", "perhaps"),
    "CPU with AMX": (cpu(AMX), "no", "yes"),
    "CPU, Arm with BF16": (cpu(frozenset({"asimd", "bf16"})), "no", "perhaps"),
    "CPU, Arm": (cpu(frozenset({"asimd"})), "no", "no"),
    "CPU, unreadable": (cpu(None), "no", "perhaps"),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rule(name):
    device, float16, bfloat16 = RULES[name]
    assert capability.support(device, "float16").gain == float16
    assert capability.support(device, "bfloat16").gain == bfloat16


@pytest.mark.parametrize(
    "number, types",
    [
        ((6, 1), ()),
        ((7, 0), ("float16",)),
        ((7, 5), ("float16",)),
        ((8, 0), ("float16", "bfloat16", "TF32")),
        ((12, 0), ("float16", "bfloat16", "TF32")),
    ],
    ids=str,
)
def test_tensor_cores(number, types):
    assert capability.tensor_cores(number) == types


# (devices, what auto chooses, a part of the reason)
CHOICES = {
    "GPU 3.5": ([cpu(AMX), gpu(3, 5)], "float32", "computed as float32"),
    "GPU 5.3": ([cpu(), gpu(5, 3)], "float32", "no tensor cores"),
    "GPU 6.1": ([cpu(), gpu(6, 1)], "float32", "no speed from float16 on GPU:0"),
    "GPU 6.0 that measures faster": (
        [cpu(), gpu(6, 0, float16=0.6)],
        "float16",
        "0.60 of float32's time, measured",
    ),
    "GPU 7.0": ([cpu(), gpu(7, 0)], "float16", "compute capability 7.0"),
    "GPU 7.5": ([cpu(), gpu(7, 5)], "float16", "compute capability 7.5"),
    "GPU 7.5 that measures no faster": (
        [cpu(), gpu(7, 5, float16=1.0)],
        "float32",
        "but 1.00 of float32's time, measured",
    ),
    "GPU 8.0": ([cpu(), gpu(8, 0)], "bfloat16", "compute capability 8.0"),
    "GPU 8.9": ([cpu(), gpu(8, 9)], "bfloat16", "compute capability 8.9"),
    "GPU 9.0": ([cpu(), gpu(9, 0)], "bfloat16", "compute capability 9.0"),
    "GPU 9.0 whose bfloat16 is slow": (
        [cpu(), gpu(9, 0, bfloat16=1.2, float16=0.3)],
        "float16",
        "0.30",
    ),
    "two alike": ([cpu(), gpu(8, 0), gpu(8, 0, 1)], "bfloat16", "8.0"),
    "8.0 and 7.0": ([cpu(), gpu(8, 0), gpu(7, 0, 1)], "float16", "7.0"),
    "8.0 and 6.1": ([cpu(), gpu(8, 0), gpu(6, 1, 1)], "float32", "on GPU:1"),
    "other maker, not measured": (
        [cpu(), RULES["GPU of another maker"][0]],
        "float32",
        "no measured gain from bfloat16",
    ),
    "CPU": ([cpu()], "float32", "without AVX512_BF16 or AMX"),
    "CPU that lies": ([cpu(bfloat16=0.1, float16=0.1)], "float32", "without"),
    "AVX512_BF16, not measured": ([cpu(AVX512_BF16)], "float32", "no measured gain"),
    "AVX512_BF16, faster": ([cpu(AVX512_BF16, bfloat16=0.7)], "bfloat16", "0.70"),
    "AVX512_BF16, as fast": ([cpu(AVX512_BF16, bfloat16=0.97)], "float32", "0.97"),
    "AVX512_BF16, slower": ([cpu(AVX512_BF16, bfloat16=2.0)], "float32", "2.00"),
    "AMX": ([cpu(AMX)], "bfloat16", "AMX tiles"),
    "AMX, faster": ([cpu(AMX, bfloat16=0.4)], "bfloat16", "AMX tiles"),
    "AMX, slower": ([cpu(AMX, bfloat16=1.5, float16=0.1)], "float32", "1.50"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_auto_chooses(name):
    devices, precision, reason = CHOICES[name]
    choice = capability.choose(devices)
    assert choice.precision == precision
    assert reason in choice.reason
    if not any(device.ratios for device in devices):  # auto never earns a warning
        assert capability.slowdown_note(devices, choice.precision) is None


# (devices, precision, a part of the warning or None, whether it must be measured)
WARNINGS = {
    "float32": ([cpu()], "float32", None, False),
    "float16 on a CPU": ([cpu(AMX)], "float16", "--precision=bfloat16 is", False),
    "bfloat16 on a CPU": ([cpu()], "bfloat16", "--precision=float32 is", False),
    "not known": ([cpu(AVX512_BF16)], "bfloat16", None, True),
    "known": ([cpu(AVX512_BF16, bfloat16=2.0)], "bfloat16", "2.00 of its time", True),
    "hardly": ([cpu(AVX512_BF16, bfloat16=1.04)], "bfloat16", None, True),
    "AMX": ([cpu(AMX)], "bfloat16", None, False),
    "float16, GPU 3.5": ([cpu(), gpu(3, 5)], "float16", "on GPU:0", False),
    "float16, GPU 6.1": ([cpu(), gpu(6, 1)], "float16", None, True),
    "float16, GPU 7.5": ([cpu(), gpu(7, 5)], "float16", None, False),
    "bfloat16, GPU 7.5": (
        [cpu(AMX), gpu(7, 5)],
        "bfloat16",
        "bfloat16 needs compute capability 8.0, not 7.5. Expect",
        False,
    ),
    "one of two": ([gpu(8, 0), gpu(7, 0, 1)], "bfloat16", "on GPU:1", False),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_a_run_that_would_be_slower_is_told(name):
    devices, precision, said, measures = WARNINGS[name]
    found = capability.slowdown_note(devices, precision)
    assert (found is None) == (said is None)
    assert said is None or (said in found and "\n" not in found)
    assert capability.must_measure(devices, precision) == measures


def test_every_16_bit_precision_has_its_rank():
    assert set(capability.PREFERRED) == set(choices.HALF_PRECISIONS)
