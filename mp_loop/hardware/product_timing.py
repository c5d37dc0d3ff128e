"""How long products take in each type on the devices of this machine.

    found = devices.find()
    timings = product_timing.measure(found)                # takes seconds
    found = product_timing.with_ratios(found, timings)
    capability.choose(found)

A product is timed with its gradients: one forward and two backward.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from mp_loop.hardware import capability, devices

PRECISIONS = ("float32", *capability.PREFERRED)
# How long each kind of product is timed, all types together.
_SECONDS_PER_PRODUCT = 0.5


@dataclasses.dataclass(frozen=True)
class Timing:
    """The best time of one product and its gradients, for each type.

    Attributes:
      product: what was computed.
      seconds: for each precision.
      flops: floating-point operations of one run.
    """

    product: str
    seconds: Mapping[str, float]
    flops: float


def time_products(
    device: capability.Device, budget: float = _SECONDS_PER_PRODUCT
) -> list[Timing]:
    """Times a matrix product and a convolution, forward and backward, in each type.

    The types take turns, so that a busy moment affects all of them; the best of at
    least three runs counts. A type whose products are slow on the processor is
    computed as `TrainStep` does it: stored in 16 bits, multiplied in float32.

    Args:
      device: one of `devices.find`.
      budget: seconds for each product; the first run of each type, which loads
        kernels, is not included.
    """
    large = device.kind != "CPU"
    size, batch, channels = (4096, 64, 256) if large else (512, 16, 32)
    products = {
        f"matrix product {size} x {size}": (
            [(size, size), (size, size)],
            tf.matmul,
            3 * 2.0 * size**3,  # forward, and twice backward
        ),
        f"convolution 3 x 3, {channels} channels": (
            [(batch, 28, 28, channels), (3, 3, channels, channels)],
            lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"),
            3 * 2.0 * batch * 28 * 28 * 9 * channels**2,
        ),
    }
    timings = []
    for name, (shapes, product, flops) in products.items():
        with tf.device(device.name):
            runs = {
                precision: _differentiated(product, shapes, precision, not large)
                for precision in PRECISIONS
            }
            timings.append(Timing(name, _best(runs, budget), flops))
    return timings


def _differentiated(
    product: Callable, shapes: Sequence[tuple[int, ...]], precision: str, on_cpu: bool
) -> Callable[[], tf.Tensor]:
    """Returns a function that computes a product and its gradients once."""
    inputs = [tf.cast(tf.random.normal(shape), precision) for shape in shapes]
    halved = precision in capability.PREFERRED
    wide = on_cpu and halved and devices.multiplies_slowly(precision)

    @tf.function(autograph=False)
    def run() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            x, y = (tf.cast(t, tf.float32) if wide else t for t in inputs)
            outputs = tf.cast(product(x, y), precision)  # float32 -> 16 bits
        grads = tape.gradient(outputs, inputs, outputs)
        # One number of each: nothing is pruned, and little is copied to the host.
        return tf.stack([tf.reshape(t, [-1])[0] for t in (outputs, *grads)])

    return run


def _best(
    runs: Mapping[str, Callable[[], tf.Tensor]], budget: float
) -> dict[str, float]:
    """Returns the shortest time of each run, in seconds."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run().numpy()  # traces, and loads kernels
    started, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - started < budget:
        for name, run in runs.items():
            began = time.perf_counter()
            run().numpy()  # waits for the device
            best[name] = min(best[name], time.perf_counter() - began)
        rounds += 1
    return best


def measure(found: Sequence[capability.Device]) -> dict[str, list[Timing]]:
    """Times the devices that training would use, the first one of each model.

    Returns:
      The timings of each model. They are taken once in a process.
    """
    first = {}
    for device in capability.used_for_training(found):
        first.setdefault(device.model, device)
    return {
        model: _timings(device.name, device.kind) for model, device in first.items()
    }


@functools.cache
def _timings(name: str, kind: str) -> list[Timing]:
    return time_products(capability.Device(kind, name))


def with_ratios(
    found: Sequence[capability.Device], timings: Mapping[str, Sequence[Timing]]
) -> list[capability.Device]:
    """Adds to each device the worst measured ratio of each type to float32."""
    ratios = {
        model: {
            precision: max(
                t.seconds[precision] / t.seconds["float32"] for t in of_model
            )
            for precision in capability.PREFERRED
        }
        for model, of_model in timings.items()
    }
    return [
        dataclasses.replace(device, ratios=ratios.get(device.model, {}))
        for device in found
    ]
