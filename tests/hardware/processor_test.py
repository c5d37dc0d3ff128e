"""What follows from the instructions of a processor."""

import os

import pytest

from mp_loop.hardware import devices, processor

CPUINFO = {
    "x86": (
        "processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\n",
        {"fpu", "avx512_bf16", "amx_bf16"},
    ),
    "Arm": ("Features\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
    "none": ("", None),
    "no flags": ("processor : 0\n", None),
}
ZEN_3 = "flags : fpu avx2 fma\n"
ICE_LAKE = "flags : fpu avx2 fma avx512f avx512_vnni\n"
SAPPHIRE_RAPIDS = "flags : fpu avx2 avx512_vnni avx512_bf16 amx_bf16\n"
ARM = "Features : fp asimd bf16\n"


@pytest.mark.parametrize("name", CPUINFO)
def test_instructions_are_read(name, monkeypatch):
    text, expected = CPUINFO[name]
    monkeypatch.setattr(processor, "_cpuinfo", lambda: text)
    assert processor.instructions() == expected


# Instructions, the environment, what has slow kernels in oneDNN, what is chosen.
KERNELS = {
    "old": (ZEN_3, None, False, "1"),
    "the user's own": (ZEN_3, "0", False, "0"),
    "TensorFlow takes them by itself": (ICE_LAKE, None, False, None),
    "not an x86": (ARM, None, False, None),
    "unknown": ("", None, False, None),
    "slow there": (SAPPHIRE_RAPIDS, None, True, "0"),
    "slow there, on an old one": (ZEN_3, None, True, "0"),
    "slow there, but the user's own": (SAPPHIRE_RAPIDS, "1", True, "1"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_that_are_chosen(name, monkeypatch):
    text, given, slow, expected = KERNELS[name]
    monkeypatch.setattr(processor, "_cpuinfo", lambda: text)
    monkeypatch.setattr(os, "environ", {"TF_ENABLE_ONEDNN_OPTS": given})
    if given is None:
        del os.environ["TF_ENABLE_ONEDNN_OPTS"]
    processor.prefer_onednn(unless=slow)
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == expected


MULTIPLIES_SLOWLY = {
    ("float16", ZEN_3): True,
    ("float16", SAPPHIRE_RAPIDS): True,
    ("bfloat16", ZEN_3): True,
    ("bfloat16", ICE_LAKE): True,
    ("bfloat16", SAPPHIRE_RAPIDS): False,
    ("bfloat16", ARM): False,
    ("bfloat16", ""): False,
}


@pytest.mark.parametrize(("dtype", "text"), MULTIPLIES_SLOWLY)
def test_a_type_without_instructions_is_multiplied_in_float32(dtype, text, monkeypatch):
    monkeypatch.setattr(processor, "_cpuinfo", lambda: text)
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    assert devices.multiplies_slowly(dtype) == MULTIPLIES_SLOWLY[dtype, text]
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    assert not devices.multiplies_slowly(dtype)
