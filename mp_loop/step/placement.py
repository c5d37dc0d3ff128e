"""What XLA cannot compile, and a step that then runs without XLA.

    step = Compiled(one_step, model)
    step(inputs, labels)       # compiled; or uncompiled, after a warning that says why

TensorFlow keeps some resources on the host whatever device they are made for: int32
and string variables, lookup tables, iterators. XLA refuses a resource of another
device when the compiled function is run (tensorflow#53192, tensorflow#108071), in
words that name neither layer nor variable. What a function captures is known as soon
as it is traced, with or without a GPU. What replicas exchange stays outside of what is
compiled, too.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops import handle_data_util

from mp_loop.distributed import nests
from mp_loop.hardware import devices
from mp_loop.operations import again

logger = logging.getLogger(__name__)


class Compiled:
    """A `tf.function` compiled by XLA, or uncompiled where that cannot be.

    Its other attributes are those of the `tf.function`.
    """

    def __init__(
        self,
        function: Callable[..., nests.Nest],
        model: keras.Model,
        on_refusal: Callable[[], None] = lambda: None,
        name: str = "The step",
        **arguments: object,
    ):
        """Traces nothing yet.

        Args:
          function: of tensors; called inside a `tf.function`.
          model: where the owner of what XLA cannot reach is looked for.
          on_refusal: called before `function` is traced for a run without XLA.
          name: of what is computed, for the warning.
          **arguments: others of `tf.function`; AutoGraph converts nothing.
        """

        @functools.wraps(function)
        def checked(*args: nests.Nest) -> nests.Nest:
            with again.for_xla(), _without_exchange():
                outputs = function(*args)
            refused = _unreachable_here(args)
            if refused:
                names = ", ".join(describe(refused, model))
                raise _Refused(f"which cannot reach: {names}")
            return outputs

        self._on_refusal = on_refusal
        self._name = name
        self._function = tf.function(
            checked, jit_compile=True, autograph=False, **arguments
        )
        self._uncompiled = function

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args: nests.Nest) -> nests.Nest:
        """Calls the function."""
        try:
            return self._function(*args)
        except _Refused as reason:  # while tracing: nothing has run
            logger.warning("%s runs without XLA, %s.", self._name, reason)
        self._on_refusal()
        self._function = self._uncompiled
        return self._function(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def function(
    one_step: Callable[..., nests.Nest],
    model: keras.Model,
    jit_compile: bool,
    around: Callable[
        [Callable[..., nests.Nest]], Callable[..., nests.Nest]
    ] = lambda step: step,
) -> tf.types.experimental.PolymorphicFunction:
    """Makes the `tf.function` of a step, in which it is `Compiled` if `jit_compile`.

    Args:
      one_step: of tensors.
      model: as for `Compiled`.
      jit_compile: whether XLA compiles it where it can.
      around: of the step, makes what is done around it, which XLA never compiles.
    """
    if jit_compile:
        one_step = Compiled(one_step, model)
    return tf.function(around(one_step), autograph=False)


def part(
    function: Callable[..., nests.Nest],
    model: keras.Model,
    jit_compile: bool,
    name: str,
) -> Callable[..., nests.Nest]:
    """Makes a part of a step, for use in its `tf.function`; for others as `Compiled`.

    Args:
      function: of tensors.
      model: as for `Compiled`.
      jit_compile: whether XLA compiles it where it can.
      name: as for `Compiled`.
    """
    return Compiled(function, model, name=name) if jit_compile else function


class _Refused(Exception):
    """XLA cannot compile what was traced; the message says why."""


@contextlib.contextmanager
def _without_exchange() -> Iterator[None]:
    """Inside, what is traced may not exchange numbers with other replicas."""
    refused = _Refused("which cannot exchange numbers between replicas")
    try:
        yield
    except RuntimeError as error:
        if "`merge_call` called" not in str(error):
            raise
        raise refused from error
    # On GPUs TensorFlow would let XLA compile it, which is untested.
    graph = tf.compat.v1.get_default_graph()
    if any(op.type.startswith("Collective") for op in graph.get_operations()):
        raise refused


def unreachable(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Finds what a function that XLA compiled could not use.

    Args:
      tensors: what a function takes or captures, such as the `captured_inputs` of a
        `ConcreteFunction`.

    Returns:
      Those of them that are strings or handles of resources on the host: tables and
      the like, string variables, variables of another device than most, and, if
      there is a GPU, variables of a dtype that TensorFlow does not put there.
    """
    dtypes = [_variable_dtype(tensor) for tensor in tensors]
    places = collections.Counter(
        tensor.device for tensor, dtype in zip(tensors, dtypes, strict=True) if dtype
    )
    home = places.most_common(1)[0][0] if places else ""
    return [
        tensor
        for tensor, dtype in zip(tensors, dtypes, strict=True)
        if tensor.dtype == tf.string
        or (tensor.dtype == tf.resource and dtype in (None, tf.string))
        or (dtype and tensor.device != home)
        or (dtype and _only_on_host(dtype) and devices.has_gpu())
    ]


def describe(tensors: Sequence[tf.Tensor], model: keras.Model) -> list[str]:
    """Names what `unreachable` found by layer and kind, each once.

    Args:
      tensors: what was found.
      model: where the layers that own it are looked for.
    """
    owners: dict[int, list[str]] = {}
    kinds = {}
    for layer in model._flatten_layers(include_self=False):
        for part in tf.train.TrackableView(layer).descendants():
            # A table's is called otherwise than a variable's.
            handle = getattr(part, "resource_handle", getattr(part, "handle", None))
            owners.setdefault(id(handle), []).append(layer.name)
            kinds[id(handle)] = type(part).__name__

    def say(tensor: tf.Tensor) -> str:
        if tensor.dtype != tf.resource:
            return "strings"
        dtype = _variable_dtype(tensor)
        place = tf.DeviceSpec.from_string(tensor.device)
        where = f"{place.device_type}:{place.device_index}"
        kind = f"{dtype.name} variable on {where}" if dtype else kinds.get(id(tensor))
        owner = "/".join(owners.get(id(tensor), [model.name]))
        return f"{owner} ({kind or 'table or the like'})"

    return list(dict.fromkeys(map(say, tensors)))


def _unreachable_here(args: nests.Nest) -> list[tf.Tensor]:
    """What the graph that is being traced takes or captures and XLA cannot reach."""
    if tf.executing_eagerly():  # tf.config.run_functions_eagerly
        return []
    captures = tf.compat.v1.get_default_graph().external_captures
    given = [x for x in tf.nest.flatten(args) if isinstance(x, tf.Tensor)]
    return unreachable([*given, *captures])


def _variable_dtype(tensor: tf.Tensor) -> tf.DType | None:
    """The dtype of the variable that a tensor is the handle of, or None."""
    if tensor.dtype != tf.resource:
        return None
    data = handle_data_util.get_handle_data(tensor)
    # Some tables have two: of keys and of values.
    if data is None or len(data.shape_and_type) != 1:
        return None
    return tf.as_dtype(data.shape_and_type[0].dtype)


def _only_on_host(dtype: tf.DType) -> bool:
    """Tells whether TensorFlow makes such a variable on the host, GPU or not."""
    return dtype in (tf.int32, tf.string) or dtype.is_quantized
