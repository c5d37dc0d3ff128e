"""What is read about a processor."""

import pytest

from mp_loop.hardware import processor

CPUINFO = {
    "x86": (
        "processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\n",
        {"fpu", "avx512_bf16", "amx_bf16"},
    ),
    "Arm": ("Features\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
    "none": ("", None),
    "no flags": ("processor : 0\n", None),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_instructions_are_read(name, monkeypatch):
    text, expected = CPUINFO[name]
    monkeypatch.setattr(processor, "_cpuinfo", lambda: text)
    assert processor.instructions() == expected
