"""The models that experiments name.

    model = models.build("resnet20", (32, 32, 3), num_classes=10, seed=0)

Every model is a float32 Keras model from images to logits: [batch, h, w, c] to
[batch, num_classes], without softmax. The same arguments give the same initial
weights, whatever was drawn before. Accepted names:

    mlp                  two hidden layers of 256
    cnn                  three stages of 3x3 convolutions with batch norm
    resnet20, 32, ...    He et al. 2016, section 4.2: any resnet{6n+2}
    vit_tiny             four pre-norm attention blocks over patches
    MobileNetV2, ...     every architecture of keras.applications, any case
    folder/model.keras   a saved model
    package.module:f     f(input_shape, num_classes): this runs your code

`resnet50` and `resnet152` are 6n+2 too; these names mean keras.applications'.
"""

import difflib
import importlib
import inspect
import os
import re
import zipfile
from collections.abc import Callable
from typing import Any

import keras

Shape = tuple[int, int, int]


class ModelError(ValueError):
    """A model that cannot be had; the message is one line."""


def build(
    name: str, input_shape: Shape, num_classes: int, seed: int = 0
) -> keras.Model:
    """Builds a float32 model that gives logits.

    Args:
      name: see the table in the module's docstring.
      input_shape: (h, w, c) of one image.
      num_classes: the length of the logits; at least 1.
      seed: of the initial weights (and of dropout). `keras.utils.set_random_seed`
        is called with it, so Python's, NumPy's and TensorFlow's global seeds are
        `seed`'s afterwards. A saved model's weights do not depend on it.

    Returns:
      A `keras.Model` with one input and one output. A model of the user's may end
      in a softmax: ask `from_logits`.

    Raises:
      ModelError: unknown name, unreadable file, an input too small for the
        architecture, or a model that does not fit the arguments.
    """
    input_shape = tuple(input_shape)
    if len(input_shape) != 3 or not all(
        isinstance(n, int) and n > 0 for n in input_shape
    ):
        raise ModelError(f"`input_shape` ({input_shape}) must be (h, w, c), positive.")
    if num_classes < 1:
        raise ModelError(f"`num_classes` ({num_classes}) must be at least 1.")
    if not 0 <= seed < 2**32:
        raise ModelError(f"`seed` ({seed}) must be in [0, 2**32).")
    maker = _maker(name)
    keras.utils.set_random_seed(seed)
    model = maker(input_shape, num_classes)
    _check(name, model, input_shape, num_classes)
    return model


def from_logits(model: keras.Model) -> bool:
    """Whether a loss on the model's output must apply softmax or sigmoid itself.

    Args:
      model: a functional or Sequential model.

    Returns:
      False if the output comes from a layer with a softmax or sigmoid activation,
      or from a softmax layer; reshapes, linear activations (the usual cast to
      float32) and nested models are looked through.
    """
    operation = model.outputs[0]._keras_history.operation
    while isinstance(operation, keras.layers.Reshape | keras.layers.Flatten) or (
        isinstance(operation, keras.layers.Activation)
        and operation.activation is keras.activations.linear
    ):
        operation = operation.input._keras_history.operation
    if isinstance(operation, keras.Model):
        return from_logits(operation)
    # Layers and functions of these names (`Softmax`, `ops.softmax`) count too.
    name = type(operation).__name__.lower()
    activation = getattr(operation, "activation", None)
    used = {name, getattr(activation, "__name__", "")}
    return not used & {"softmax", "sigmoid"}


# Ours.


def _mlp(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Flatten()(inputs)
    for _ in range(2):
        x = keras.layers.Dense(256, activation="relu")(x)
    return keras.Model(inputs, _logits(x, num_classes), name="mlp")


def _cnn(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, 32)
    for width in (64, 128):
        x = keras.layers.MaxPooling2D(2, padding="same")(x)
        x = _conv_bn(_conv_bn(x, width), width)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, _logits(x, num_classes), name="cnn")


def _resnet(depth: int) -> Callable[[Shape, int], keras.Model]:
    """The CIFAR network of He et al. 2016, with projection shortcuts.

    A 3x3 convolution to 16 channels, three stages of n = (depth - 2) / 6 blocks of
    two 3x3 convolutions with 16, 32 and 64 channels, the second and third stage
    halving the image, then the mean over it.
    """

    def make(input_shape: Shape, num_classes: int) -> keras.Model:
        inputs = keras.Input(input_shape, name="image")
        x = _conv_bn(inputs, 16)
        for stage, width in enumerate((16, 32, 64)):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                y = _conv_bn(x, width, stride=stride)
                y = _conv_bn(y, width, relu=False)
                if stride != 1:
                    x = _conv_bn(x, width, size=1, stride=stride, relu=False)
                x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, _logits(x, num_classes), name=f"resnet{depth}")

    return make


def _vit_tiny(input_shape: Shape, num_classes: int) -> keras.Model:
    """Dosovitskiy et al. 2021, small: 4x4 patches, width 64, 4 blocks, 4 heads.

    The mean over positions stands for the class token. There is no dropout. An
    image side that is not a multiple of 4 is padded by the convolution.
    """
    width, heads = 64, 4
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(width, 4, strides=4, padding="same")(inputs)
    x = keras.layers.Reshape((-1, width))(x)
    x = PositionEmbedding()(x)
    for _ in range(4):
        x = encoder_block(x, width, heads)
    x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, _logits(x, num_classes), name="vit_tiny")


def encoder_block(x: keras.KerasTensor, width: int, heads: int) -> keras.KerasTensor:
    """A pre-norm block of a Transformer encoder (Xiong et al. 2020).

    Args:
      x: [batch, positions, width].
      width: what `heads` divides.
      heads: of attention.
    """
    y = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    y = keras.layers.MultiHeadAttention(heads, width // heads)(y, y)
    x = keras.layers.Add()([x, y])
    y = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    y = keras.layers.Dense(4 * width, activation="gelu")(y)
    return keras.layers.Add()([x, keras.layers.Dense(width)(y)])


@keras.saving.register_keras_serializable(package="mp_loop")
class PositionEmbedding(keras.layers.Layer):
    """Adds one learned vector to each position of [batch, positions, width]."""

    def build(self, input_shape: Shape) -> None:
        self.embedding = self.add_weight(
            shape=input_shape[1:],
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="embedding",
        )

    def call(self, inputs: Any) -> Any:
        # In the layer's compute dtype: Keras casts the variable on reading.
        return inputs + self.embedding

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


def _conv_bn(x, width: int, size: int = 3, stride: int = 1, relu: bool = True):
    x = keras.layers.Conv2D(
        width,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    # Keras' momentum of .99 is slower than a short run.
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    return keras.layers.ReLU()(x) if relu else x


def _logits(x, num_classes: int):
    return keras.layers.Dense(num_classes, name="logits")(x)


# By name.

_OWN = {"mlp": _mlp, "cnn": _cnn, "vit_tiny": _vit_tiny}


def _applications() -> dict[str, Callable]:
    """keras.applications' architectures by lower-case name."""
    return {
        name.lower(): getattr(keras.applications, name)
        for name in dir(keras.applications)
        if name[0].isupper() and callable(getattr(keras.applications, name))
    }


def _maker(name: str) -> Callable[[Shape, int], keras.Model]:
    if name.endswith(".keras"):
        return lambda input_shape, num_classes: _load(name)
    if name.startswith("keras_hub:"):
        raise ModelError(f"`model` ('{name}') reads text: it needs a text data set.")
    if ":" in name:
        return _user_function(name)
    if name.lower() in _OWN:
        return _OWN[name.lower()]
    applications = _applications()
    if name.lower() in applications:
        return _application(name, applications[name.lower()])
    depth = re.fullmatch(r"resnet([1-9]\d{0,3})", name.lower())
    if depth and int(depth[1]) >= 8 and int(depth[1]) % 6 == 2:
        return _resnet(int(depth[1]))
    if depth:
        raise ModelError(f"`model` ('{name}'): the depth must be 6n+2, n >= 1.")
    close = difflib.get_close_matches(name.lower(), [*_OWN, *applications, "resnet20"])
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ModelError(
        f"`model` ('{name}') must be one of {', '.join(_OWN)}, resnet{{6n+2}} (such as "
        "resnet20), an architecture of keras.applications (such as MobileNetV2), a "
        f"path ending in .keras, or package.module:function.{hint}"
    )


def _application(name: str, architecture: Callable):
    def make(input_shape: Shape, num_classes: int) -> keras.Model:
        arguments = {
            "weights": None,
            "classes": num_classes,
            "classifier_activation": None,
        }
        if "include_preprocessing" in inspect.signature(architecture).parameters:
            arguments["include_preprocessing"] = False  # Our inputs are normalized.
        if re.fullmatch(r"efficientnetb\d", name.lower()):
            # Its own division by 255 cannot be left out: take it back first.
            inputs = keras.Input(input_shape, name="image")
            arguments["input_tensor"] = keras.layers.Rescaling(255.0)(inputs)
        try:
            return architecture(input_shape=input_shape, **arguments)
        except ValueError as error:
            raise ModelError(
                line(f"`model` ('{name}') cannot take images of {input_shape}", error)
            ) from error

    return make


def _load(path: str) -> keras.Model:
    if not os.path.isfile(path):
        raise ModelError(f"`model` ('{path}'): there is no such file.")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"`model` ('{path}') is not a .keras file.")
    try:
        # Safe mode: a file must not bring code that runs.
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # A broken archive or config raises any type.
        raise ModelError(line(f"`model` ('{path}') cannot be loaded", error)) from error


def _user_function(name: str):
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(line(f"`model` ('{name}') cannot be found", error)) from error
    if not callable(function):
        raise ModelError(f"`model` ('{name}') must be a function.")
    try:
        inspect.signature(function).bind((28, 28, 1), 10)
    except TypeError as error:
        raise ModelError(
            f"`model` ('{name}') must take (input_shape, num_classes): {error}."
        ) from error
    except ValueError:
        pass  # Written in C: nothing tells.
    return function


def _check(name: str, model, input_shape: Shape, num_classes: int) -> None:
    """Refuses what a training loop over (image, label) could not use."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ModelError(
            f"`model` ('{name}') must be a functional or built Sequential Keras model."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(f"`model` ('{name}') must have one input and one output.")
    wanted = model.inputs[0].shape[1:]
    if len(wanted) != 3 or any(
        w not in (None, n) for w, n in zip(wanted, input_shape, strict=True)
    ):
        raise ModelError(
            f"`model` ('{name}') takes inputs of {tuple(wanted)}; the images are "
            f"{input_shape}."
        )
    given = model.outputs[0].shape[1:]
    if tuple(given) != (num_classes,):
        raise ModelError(
            f"`model` ('{name}') gives {tuple(given)} for each image; the "
            f"{num_classes} classes need ({num_classes},)."
        )
    for layer in model._flatten_layers(include_self=False):
        policy = layer.dtype_policy
        if (policy.compute_dtype, policy.variable_dtype) != ("float32", "float32"):
            raise ModelError(
                f"`model` ('{name}') must be float32; layer '{layer.name}' is "
                f"{policy.name}."
            )


def line(what: str, why: object) -> str:
    """One line of at most some 400 characters."""
    reason = " ".join(str(why).split()) or type(why).__name__
    return f"{what}: {reason[:300].rstrip('. ')}."
