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
      network: its architecture; see `keras_models.build_model`.
      batch_size: examples of a step, unless the user asks for another number.
      shape: of one example, without the batch: (h, w, c), (features,) or
        (positions,) of tokens; empty for a workload of updates alone.
      classes: length of the logits.
      layers: hidden layers of an MLP, blocks of a Transformer; number of variables
        of a workload of updates.
      width: of the hidden layers.
      heads: of attention.
      patch: side of the square patches that an image is cut into.
      vocabulary: number of tokens; 0: the inputs are real numbers.
      gpu_batch_size: examples of a step on a GPU; 0: as elsewhere.
      has_peer: whether PyTorch can run it too.
    """

    network: str
    batch_size: int
    shape: tuple[int, ...]
    classes: int = 10
    layers: int = 0
    width: int = 0
    heads: int = 4
    patch: int = 0
    vocabulary: int = 0
    gpu_batch_size: int = 0
    has_peer: bool = True

    @property
    def is_update(self) -> bool:
        """Whether there is no model, only gradients to be applied."""
        return not self.shape

    @property
    def predicts_tokens(self) -> bool:
        """Whether each position has a label: the token after it."""
        return self.classes == self.vocabulary

    def batch(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes a batch.

        Args:
          size: examples.

        Returns:
          Inputs [size, *shape], float32 or int32, and int32 labels: [size], or
          [size, positions] if it `predicts_tokens`.
        """
        random = np.random.default_rng(0)
        if self.predicts_tokens:
            (positions,) = self.shape
            texts = random.integers(self.vocabulary, size=(size, positions + 1))
            texts = texts.astype(np.int32)
            return texts[:, :-1], texts[:, 1:]
        if self.vocabulary:
            tokens = random.integers(self.vocabulary, size=(size, *self.shape))
            inputs = tokens.astype(np.int32)
        else:
            inputs = random.standard_normal((size, *self.shape), np.float32)
        return inputs, random.integers(self.classes, size=size).astype(np.int32)

    def tiny(self) -> Workload:
        """Returns the same architecture as small as it gets, to see that it runs."""
        if self.is_update:
            return dataclasses.replace(self, layers=2, width=8)
        shape: tuple[int, ...] = (8,)
        if len(self.shape) == 3:  # a ResNet leaves a 32nd, and batch norm needs two
            shape = tuple(min(side, 64) for side in self.shape)
        vocabulary = min(self.vocabulary, 50)
        return dataclasses.replace(
            self,
            batch_size=2,
            gpu_batch_size=0,
            shape=shape,
            classes=vocabulary if self.predicts_tokens else min(self.classes, 10),
            layers=min(self.layers, 1),
            width=min(self.width, 8 * self.heads),
            vocabulary=vocabulary,
        )


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
LEARNING_RATE = 1e-3  # of Adam
_BASE = {"layers": 12, "width": 768, "heads": 12}  # of Transformers of base size

WORKLOADS = {
    "mlp_tiny": Workload("mlp", 32, (64,), layers=2, width=64),
    "mlp": Workload("mlp", 256, (1024,), layers=4, width=1024),
    "cnn": Workload("cnn", 128, _IMAGE),
    "resnet20": Workload("resnet20", 128, _IMAGE),
    "resnet50": Workload("resnet50", 16, (96, 96, 3), classes=1000),
    "vit": Workload("vit_tiny", 128, _IMAGE, layers=4, width=64, patch=4),
    "transformer": Workload(
        "encoder", 32, (64,), classes=2, layers=6, width=256, vocabulary=30_000
    ),
    # Fine-tuning: MobileNetV2 with frozen batch norm, and its last layer alone; a BERT
    # of six layers (needs the extra `text`).
    "transfer": Workload("transfer", 32, (160, 160, 3), classes=14, has_peer=False),
    "transfer_head": Workload(
        "transfer_head", 32, (160, 160, 3), classes=14, has_peer=False
    ),
    "bert": Workload(
        "bert", 32, (64,), classes=2, layers=6, width=384, heads=12, vocabulary=30_522
    ),
    # What no layer here knows: decoders and a ViT of keras_hub (extra `text`), and a
    # recurrent net.
    "gpt2": Workload("gpt2", 8, (256,), layers=6, width=256, vocabulary=10_000),
    "llama": Workload(
        "llama", 8, (256,), layers=6, width=256, vocabulary=10_000, has_peer=False
    ),
    "lstm": Workload(
        "lstm", 32, (64,), layers=2, width=256, vocabulary=10_000, has_peer=False
    ),
    "hub_vit": Workload(
        "hub_vit_mean", 8, (128, 128, 3), layers=6, width=256, patch=8, has_peer=False
    ),
    # Of a GPU's size. The last three are keras_hub's (extra `text`).
    "resnet50_224": Workload(
        "resnet50", 8, (224, 224, 3), classes=1000, gpu_batch_size=128
    ),
    "transformer_base": Workload(
        "encoder", 8, (128,), 2, **_BASE, vocabulary=30_000, gpu_batch_size=64
    ),
    "vit_b16": Workload(
        "hub_vit", 4, (224, 224, 3), 1000, **_BASE, patch=16, gpu_batch_size=64
    ),
    "bert_base": Workload(
        "bert", 8, (128,), 2, **_BASE, vocabulary=30_522, gpu_batch_size=64
    ),
    "decoder": Workload(
        "gpt2", 1, (1024,), 50_257, **_BASE, vocabulary=50_257, gpu_batch_size=8
    ),
    # Ten million parameters in square kernels, of sizes that vectors divide.
    "update20": Workload("chain", 1, (), layers=20, width=704),
    "update400": Workload("chain", 1, (), layers=400, width=160),
}
