"""What the benchmark trains: shapes and batches, the same for every framework.

    workload = WORKLOADS["resnet20"]
    inputs, labels = workload.batch(128)      # NumPy, the same on every call

The models are built from these numbers in `mp_loop.bench.keras_models` and
`mp_loop.bench.torch_models`. This module imports neither framework, because a process
of the benchmark must load only its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """One model and its data.

    Attributes:
      batch_size: examples of a step, unless the user asks for another number.
      shape: of one example, without the batch: (h, w, c), (features,) or
        (positions,) of tokens; empty for a workload of updates alone.
      classes: length of the logits.
      layers: hidden layers of an MLP, blocks of a Transformer; number of variables
        of a workload of updates.
      width: of the hidden layers.
      vocabulary: number of tokens; 0: the inputs are real numbers.
      has_peer: whether PyTorch can run it too.
    """

    batch_size: int
    shape: tuple[int, ...]
    classes: int = 10
    layers: int = 0
    width: int = 0
    vocabulary: int = 0
    has_peer: bool = True

    @property
    def is_update(self) -> bool:
        """Whether there is no model, only gradients to be applied."""
        return not self.shape

    def batch(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs [size, *shape], float32 or int32, and int32 labels [size]."""
        random = np.random.default_rng(0)
        if self.vocabulary:
            tokens = random.integers(self.vocabulary, size=(size, *self.shape))
            inputs = tokens.astype(np.int32)
        else:
            inputs = random.standard_normal((size, *self.shape), np.float32)
        return inputs, random.integers(self.classes, size=size).astype(np.int32)


@dataclasses.dataclass
class Program:
    """A compiled arm.

    Attributes:
      run: takes a number of steps and waits until they are done.
      graph_nodes: of the traced call of many steps, functions included.
      trace_seconds: what tracing it took.
    """

    run: Callable[[int], None]
    graph_nodes: int | None = None
    trace_seconds: float | None = None


_IMAGE = (32, 32, 3)
HEADS = 4  # of attention
LEARNING_RATE = 1e-3  # of Adam

WORKLOADS = {
    "mlp_tiny": Workload(32, (64,), layers=2, width=64),
    "mlp": Workload(256, (1024,), layers=4, width=1024),
    "cnn": Workload(128, _IMAGE),
    "resnet20": Workload(128, _IMAGE),
    "resnet50": Workload(16, (96, 96, 3), classes=1000),
    "vit": Workload(128, _IMAGE),
    "transformer": Workload(
        32, (64,), classes=2, layers=6, width=256, vocabulary=30_000
    ),
    # Fine-tuning: MobileNetV2 with frozen batch norm, and its last layer alone; a BERT
    # of six layers (needs the extra `text`).
    "transfer": Workload(32, (160, 160, 3), classes=14, has_peer=False),
    "transfer_head": Workload(32, (160, 160, 3), classes=14, has_peer=False),
    "bert": Workload(
        32, (64,), classes=2, layers=6, width=384, vocabulary=30_522, has_peer=False
    ),
    # What no layer here knows: decoders and a ViT of keras_hub (extra `text`), and a
    # recurrent net.
    "gpt2": Workload(8, (256,), layers=6, width=256, vocabulary=10_000, has_peer=False),
    "llama": Workload(
        8, (256,), layers=6, width=256, vocabulary=10_000, has_peer=False
    ),
    "lstm": Workload(32, (64,), layers=2, width=256, vocabulary=10_000, has_peer=False),
    "hub_vit": Workload(8, (128, 128, 3), layers=6, width=256, has_peer=False),
    # Ten million parameters in square kernels, of sizes that vectors divide.
    "update20": Workload(1, (), layers=20, width=704),
    "update400": Workload(1, (), layers=400, width=160),
}
