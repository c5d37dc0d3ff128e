"""The kernels that the commands take, and two replicas: two logical CPUs."""

import hypothesis

from mp_loop.hardware import startup

startup.prefer_onednn()

import tensorflow as tf  # noqa: E402

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

# A slow machine fails no test.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
