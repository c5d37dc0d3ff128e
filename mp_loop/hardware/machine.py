"""The machine at hand: its devices as facts, and a short measurement of each type.

    devices = find()
    devices = with_ratios(devices, measure(devices))   # seconds
    capability.choose(devices)
    best_precision()                                   # "bfloat16", say

The facts and the timings are found here; what follows from them is
`mp_loop.hardware.capability`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from mp_loop.config import choices
from mp_loop.hardware import capability, devices, processor

# Seconds that each kind of product is timed for, all types together.
BUDGET = 0.5


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


def find() -> list[capability.Device]:
    """Returns what TensorFlow can compute on, the processor first."""
    devices = []
    for physical in tf.config.list_physical_devices():
        kind, name = physical.device_type, physical.name.split("physical_device:")[-1]
        if kind == "CPU":
            devices.append(
                capability.Device(
                    kind, name, processor.model(), None, processor.instructions()
                )
            )
        elif not kind.startswith("XLA"):
            details = tf.config.experimental.get_device_details(physical)
            devices.append(
                capability.Device(
                    kind,
                    name,
                    details.get("device_name", "unknown"),
                    details.get("compute_capability"),
                )
            )
    return devices


def time_products(device: capability.Device, budget: float = BUDGET) -> list[Timing]:
    """Times a matrix product and a convolution, forward and backward, in each type.

    The types take turns, so that a busy moment meets them all; the best of at least
    three runs counts. A type that a processor has no fast products of is computed as
    `TrainStep` does it: stored in 16 bits, multiplied in float32.

    Args:
      device: one of `find`.
      budget: seconds for each product; its first run, which loads kernels, comes
        on top.
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
                for precision in reversed(choices.PRECISIONS)
            }
            timings.append(Timing(name, _best(runs, budget), flops))
    return timings


def _differentiated(
    product: Callable, shapes: Sequence[tuple[int, ...]], precision: str, on_cpu: bool
) -> Callable[[], tf.Tensor]:
    """Returns a function that computes a product and its gradients once."""
    inputs = [tf.cast(tf.random.normal(shape), precision) for shape in shapes]
    halved = precision in choices.HALF_PRECISIONS
    wide = on_cpu and halved and devices.multiplies_slowly(precision)

    @tf.function(autograph=False)
    def run() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            x, y = (tf.cast(t, tf.float32) if wide else t for t in inputs)
            outputs = tf.cast(product(x, y), precision)  # float32 -> 16 bits
        grads = tape.gradient(outputs, inputs, outputs)
        # A few numbers of each, so that nothing is pruned and reading is quick.
        return tf.stack([tf.reshape(t, [-1])[0] for t in (outputs, *grads)])

    return run


def _best(
    runs: Mapping[str, Callable[[], tf.Tensor]], budget: float
) -> dict[str, float]:
    """The shortest time of each run."""
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


def measure(devices: Sequence[capability.Device]) -> dict[str, list[Timing]]:
    """Times the devices that training would run on, the first of each model.

    Returns:
      The timings of each model. They are taken once in a process.
    """
    first = {}
    for device in capability.computing(devices):
        first.setdefault(device.model, device)
    return {
        model: _timings(device.name, device.kind) for model, device in first.items()
    }


@functools.cache
def _timings(name: str, kind: str) -> list[Timing]:
    return time_products(capability.Device(kind, name))


def with_ratios(
    devices: Sequence[capability.Device], timings: Mapping[str, Sequence[Timing]]
) -> list[capability.Device]:
    """Adds what was measured: for each type the worst ratio to float32."""
    ratios = {
        model: {
            precision: max(t.seconds[precision] / t.seconds["float32"] for t in found)
            for precision in choices.HALF_PRECISIONS
        }
        for model, found in timings.items()
    }
    return [
        dataclasses.replace(device, ratios=ratios.get(device.model, {}))
        for device in devices
    ]


def best_precision() -> str:
    """Returns what `--precision=auto` stands for on this machine; takes seconds."""
    devices = find()
    return capability.choose(with_ratios(devices, measure(devices))).precision


def warning(precision: str) -> str | None:
    """Returns `capability.warning` for this machine; measures where it must."""
    devices = find()
    if capability.must_measure(devices, precision):
        devices = with_ratios(devices, measure(devices))
    return capability.warning(devices, precision)
