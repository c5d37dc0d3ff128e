"""The kernels that the commands take, and two replicas: two logical CPUs."""

import hypothesis
import pytest

from mp_loop.hardware import startup

startup.prefer_onednn()

import tensorflow as tf  # noqa: E402
from tensorflow.python.framework import config as tf_config  # noqa: E402

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

# A slow machine fails no test.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def deterministic_for_one_test():
    """What --deterministic sets in this process, the next test begins without."""
    yield
    if tf_config.is_op_determinism_enabled():
        tf_config.disable_op_determinism()
