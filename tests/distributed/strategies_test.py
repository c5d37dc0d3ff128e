"""Data sets whose batches are divided among replicas."""

import keras
import numpy as np
import tensorflow as tf

from mp_loop.distributed import strategies
from tests.support import two_devices

optimizers = keras.optimizers


def test_many_steps_in_a_call_take_a_distributed_data_set():
    one, two = two_devices.pair(
        two_devices.network,
        lambda: optimizers.SGD(0.1),
        two_devices.crossentropy(),
        "float32",
    )
    whole = tf.data.Dataset.from_tensor_slices(
        two_devices.images(batch=5 * two_devices.BATCH)
    )
    whole = whole.batch(two_devices.BATCH, drop_remainder=True)
    losses = [float(one(*batch)["loss"]) for batch in whole]

    def shares(context):
        assert (context.input_pipeline_id, context.num_input_pipelines) == (0, 1)
        assert context.num_replicas_in_sync == 2
        return whole.unbatch().batch(two_devices.BATCH // 2, drop_remainder=True)

    found = []
    for data in (
        two_devices.STRATEGY.experimental_distribute_dataset(whole),
        strategies.batches(two_devices.STRATEGY, shares),
    ):
        iterator = iter(data)
        found.append([*two.run(iterator, 2)["loss"], *two.run(iterator, 3)["loss"]])
    np.testing.assert_allclose(found[0], losses, rtol=1e-6)
    assert two._step.experimental_get_tracing_count() == 1
    assert len(found[1]) == 5
    two_devices.assert_replicas_equal(two)
