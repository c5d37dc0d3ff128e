"""The kernels that the commands take, and two replicas: two logical CPUs."""

from mp_loop.hardware import startup

startup.prefer_onednn()

import tensorflow as tf  # noqa: E402

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
