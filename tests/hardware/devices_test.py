"""The devices at hand, and what follows from a processor's instructions."""

import pytest
import tensorflow as tf

from mp_loop.hardware import devices, processor
from tests.support import cpuinfo


def test_the_devices_are_tensorflows():
    found = devices.find()
    assert found[0].kind == "CPU"
    # One entry for all processors, and one for each GPU.
    assert len(found) == 1 + len(tf.config.list_physical_devices("GPU"))
    assert all(device.model for device in found)


MULTIPLIES_SLOWLY = {
    ("float16", cpuinfo.ZEN_3): True,
    ("float16", cpuinfo.SAPPHIRE_RAPIDS): True,
    ("bfloat16", cpuinfo.ZEN_3): True,
    ("bfloat16", cpuinfo.ICE_LAKE): True,
    ("bfloat16", cpuinfo.SAPPHIRE_RAPIDS): False,
    ("bfloat16", cpuinfo.ARM): False,
    ("bfloat16", ""): False,
}


@pytest.mark.parametrize(("dtype", "text"), MULTIPLIES_SLOWLY)
def test_a_type_without_instructions_is_multiplied_in_float32(dtype, text, monkeypatch):
    monkeypatch.setattr(processor, "_cpuinfo", lambda: text)
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    assert devices.multiplies_slowly(dtype) == MULTIPLIES_SLOWLY[dtype, text]
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    assert not devices.multiplies_slowly(dtype)
