"""Which kernels TensorFlow will take."""

import os

import pytest

from mp_loop.hardware import processor, startup
from tests.support import cpuinfo

# Instructions, the environment, what has slow kernels in oneDNN, what is chosen.
KERNELS = {
    "old": (cpuinfo.ZEN_3, None, False, "1"),
    "the user's own": (cpuinfo.ZEN_3, "0", False, "0"),
    "TensorFlow takes them by itself": (cpuinfo.ICE_LAKE, None, False, None),
    "not an x86": (cpuinfo.ARM, None, False, None),
    "unknown": ("", None, False, None),
    "slow there": (cpuinfo.SAPPHIRE_RAPIDS, None, True, "0"),
    "slow there, on an old one": (cpuinfo.ZEN_3, None, True, "0"),
    "slow there, but the user's own": (cpuinfo.SAPPHIRE_RAPIDS, "1", True, "1"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_that_are_chosen(name, monkeypatch):
    text, given, slow, expected = KERNELS[name]
    monkeypatch.setattr(processor, "_cpuinfo", lambda: text)
    monkeypatch.setattr(os, "environ", {"TF_ENABLE_ONEDNN_OPTS": given})
    if given is None:
        del os.environ["TF_ENABLE_ONEDNN_OPTS"]
    startup.prefer_onednn(unless=slow)
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == expected
