"""Tensors in nested structures, as a type.

Users' models take and return them, users' data sets yield them: a tensor, or tuples,
lists and dicts of tensors (`tf.nest`), whose form nothing here knows beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import keras
import tensorflow as tf

# A tensor, or a nested structure of tensors; arrays where there may be some; what a
# strategy holds for each replica.
Nest: TypeAlias = Any

# One tensor, or Keras' symbol of it, while a model is made.
AnyTensor: TypeAlias = tf.Tensor | keras.KerasTensor

# A batch as a data set yields it: inputs, labels, and weights where there are some.
Batch: TypeAlias = tuple[Nest, ...]
Batches: TypeAlias = Iterator[Batch]
