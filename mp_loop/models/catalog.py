"""The models that experiments name.

    model = models.build("resnet20", (32, 32, 3), num_classes=10, seed=0)

Every model is a float32 Keras model from images to logits: [batch, h, w, c] to
[batch, num_classes], without softmax. The same arguments give the same initial
weights, whatever was drawn before. Accepted names:

    mlp                  two hidden layers of 256
    cnn                  three stages of 3x3 convolutions with batch norm
    resnet9              fewer, wider layers than resnet20: learns in fewer epochs
    resnet20, 32, ...    He et al. 2016, section 4.2: any resnet{6n+2}
    vit_tiny             four pre-norm attention blocks over patches
    MobileNetV2, ...     every architecture of keras.applications, any case
    folder/model.keras   a saved model
    package.module:f     f(input_shape, num_classes): this runs your code

`resnet50` and `resnet152` are 6n+2 too; these names mean keras.applications'.

Pretrained weights make an architecture of keras.applications a feature extractor
with a head of our own, as a saved model without its top is:

    model = models.build("MobileNetV2", (160, 160, 3), 14, weights="imagenet")
    preprocess = models.preprocessing("auto", "MobileNetV2", "imagenet")
    models.freeze(model, "BN|Conv1")             # the layers of these names,
    models.Trained(model).head_alone()           # and for now all but the last one
"""

import difflib
import functools
import importlib
import inspect
import itertools
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
    name: str,
    input_shape: Shape,
    num_classes: int,
    seed: int = 0,
    weights: str = "",
    dropout: float = 0.0,
) -> keras.Model:
    """Builds a float32 model that gives logits.

    Args:
      name: see the table in the module's docstring.
      input_shape: (h, w, c) of one image.
      num_classes: the length of the logits; at least 1.
      seed: of the initial weights (and of dropout). `keras.utils.set_random_seed`
        is called with it, so Python's, NumPy's and TensorFlow's global seeds are
        `seed`'s afterwards. A saved model's weights do not depend on it.
      weights: "" for random ones; "imagenet" for those that keras.applications
        downloads; or a file, `.keras` or `.weights.h5`, with the weights of the
        model, or of an architecture without its top (or, `.keras`, with another).
      dropout: rate before the head of pretrained features.

    Returns:
      A `keras.Model` with one input and one output. A model of the user's may end
      in a softmax: ask `from_logits`.

    Raises:
      ModelError: unknown name, unreadable file, an input too small for the
        architecture, weights of another model, or a model that does not fit the
        arguments.
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
    maker = _maker(name, weights)
    keras.utils.set_random_seed(seed)
    model = maker(input_shape, num_classes)
    _check(name, model, input_shape)
    features = len(model.outputs[0].shape) == 4
    if weights not in ("", "imagenet") and features:
        _load_weights(weights, model)
    if features:
        model = with_head(model, num_classes, dropout)
    _check_output(name, model, num_classes)
    if weights not in ("", "imagenet") and not features:
        _load_weights(weights, model)
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


def with_head(
    features: keras.Model, num_classes: int, dropout: float = 0.0
) -> keras.Model:
    """Puts a linear classifier on the mean of a feature map.

    Args:
      features: gives [batch, h, w, channels].
      num_classes: length of the logits.
      dropout: rate before the classifier.

    Returns:
      A flat model: the layers of `features` are its own.
    """
    x = keras.layers.GlobalAveragePooling2D(name="mean")(features.outputs[0])
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(features.inputs[0], _logits(x, num_classes), name=features.name)


# Transfer.


def preprocessing(mode: str, name: str, weights: str) -> Callable[[Any], Any] | None:
    """Returns what makes a pretrained model's inputs of pixels.

    Args:
      mode: "tf" (to [-1, 1]), "torch" (ImageNet's mean and deviation), "caffe" (BGR
        less ImageNet's mean), as keras.applications calls them; "none" (pixels as
        they are); "dataset"; or "auto": with weights, what the architecture's own
        `preprocess_input` does, else "dataset".
      name: of the model.
      weights: as for `build`.

    Returns:
      A function of float32 [b, h, w, 3] in [0, 255]; None for "dataset": mean and
      deviation of the training data.
    """
    if mode == "auto" and weights:
        architecture = _applications().get(name.lower())
        if architecture is not None:
            return inspect.getmodule(architecture).preprocess_input
    if mode in ("auto", "dataset"):
        return None
    if mode == "none":
        return lambda pixels: pixels
    return functools.partial(
        keras.applications.imagenet_utils.preprocess_input, mode=mode
    )


def freeze(model: keras.Model, pattern: str) -> None:
    """Freezes the layers, and parts of layers, whose name a pattern finds.

    Frozen batch norm uses, and keeps, its moving statistics.

    Args:
      model: a built model.
      pattern: regular expression.

    Raises:
      ModelError: no layer has such a name, or no trainable weight is left.
    """
    layers = list(model._flatten_layers(include_self=False))
    found = [layer for layer in layers if re.search(pattern, layer.name)]
    if not found:
        raise ModelError(f"`freeze` ({pattern}) finds no layer of '{model.name}'.")
    for layer in found:
        layer.trainable = False
    if not model.trainable_weights:
        raise ModelError(
            f"`freeze` ({pattern}) leaves nothing to train in '{model.name}'."
        )


class Trained:
    """Which layers of a model are trained: all that may be, or the last alone."""

    def __init__(self, model: keras.Model):
        """Takes note of what may be trained: what is not frozen now."""
        self._model = model
        # A layer comes before its parts, which it freezes or not as well.
        self._before = [
            (layer, layer.trainable)
            for layer in model._flatten_layers(include_self=False)
        ]

    def everything(self) -> None:
        """Makes every layer as trainable as it was."""
        for layer, trainable in self._before:
            layer.trainable = trainable

    def head_alone(self) -> None:
        """Freezes all but the last layer that has weights to train.

        Raises:
          ModelError: nothing else has weights to train.
        """
        self.everything()
        layers = [x for x in _layers(self._model) if x.trainable_weights]
        if len(layers) < 2:
            raise ModelError(
                f"'{self._model.name}' has nothing to train but its last layer: "
                "`head_epochs` must be 0."
            )
        for layer in layers[:-1]:
            layer.trainable = False


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model in order, nested models opened."""
    opened = [
        _layers(layer) if isinstance(layer, keras.Model) else [layer]
        for layer in model.layers
    ]
    return list(itertools.chain(*opened))


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


def _resnet9(input_shape: Shape, num_classes: int) -> keras.Model:
    """Page's residual network for short trainings (DAWNBench 2018), half as wide.

    Eight 3x3 convolutions and the logits. The image is halved after the second,
    fifth and sixth; a block of two convolutions is added to its input after the
    second and the sixth. The maximum over the image goes into the logits.
    """

    def residual(x, width: int):
        return keras.layers.Add()([x, _conv_bn(_conv_bn(x, width), width)])

    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, 32)
    for width in (64, 128, 256):
        x = keras.layers.MaxPooling2D(2, padding="same")(_conv_bn(x, width))
        if width != 128:
            x = residual(x, width)
    x = keras.layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, _logits(x, num_classes), name="resnet9")


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

_OWN = {"mlp": _mlp, "cnn": _cnn, "resnet9": _resnet9, "vit_tiny": _vit_tiny}


def _applications() -> dict[str, Callable]:
    """keras.applications' architectures by lower-case name."""
    return {
        name.lower(): getattr(keras.applications, name)
        for name in dir(keras.applications)
        if name[0].isupper() and callable(getattr(keras.applications, name))
    }


def _maker(name: str, weights: str) -> Callable[[Shape, int], keras.Model]:
    applications = _applications()
    if weights == "imagenet" and name.lower() not in applications:
        raise ModelError(
            f"`weights` (imagenet) needs an architecture of keras.applications, not "
            f"'{name}'."
        )
    if weights and name.endswith(".keras"):
        raise ModelError(f"`weights` ({weights}): the model ('{name}') has its own.")
    if name.endswith(".keras"):
        return lambda input_shape, num_classes: _load(name)
    if name.startswith("keras_hub:"):
        raise ModelError(f"`model` ('{name}') reads text: it needs a text data set.")
    if ":" in name:
        return _user_function(name)
    if name.lower() in _OWN:
        return _OWN[name.lower()]
    if name.lower() in applications and weights:
        return _pretrained(name, applications[name.lower()], weights)
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


def _pretrained(name: str, architecture: Callable, weights: str):
    """The architecture without its top, with its own preprocessing in it."""
    initial = "imagenet" if weights == "imagenet" else None

    def make(input_shape: Shape, num_classes: int) -> keras.Model:
        try:
            return architecture(
                include_top=False, weights=initial, input_shape=input_shape
            )
        except Exception as error:  # A download raises any type.
            raise ModelError(
                line(f"`model` ('{name}') with `weights` ({weights})", error)
            ) from error

    return make


def _load_weights(path: str, model: keras.Model) -> None:
    """Loads a file's weights into a model that may lack the file's last layers."""
    if not os.path.isfile(path):
        raise ModelError(f"`weights` ('{path}'): there is no such file.")
    if path.endswith(".weights.h5"):
        try:
            return model.load_weights(path)
        except Exception as error:  # A broken file raises any type.
            raise ModelError(
                line(f"`weights` ('{path}') cannot be loaded", error)
            ) from error
    if not path.endswith(".keras"):
        raise ModelError(
            f"`weights` ('{path}') must be imagenet, or end in .keras or .weights.h5."
        )
    given = _load(path, argument="weights").weights[: len(model.weights)]
    for ours, theirs in itertools.zip_longest(model.weights, given):
        if theirs is None or ours.shape != theirs.shape:
            found = "nothing" if theirs is None else f"{theirs.path} {theirs.shape}"
            raise ModelError(
                f"`weights` ('{path}') are of another model than '{model.name}': for "
                f"{ours.path} {ours.shape} there is {found}."
            )
    for ours, theirs in zip(model.weights, given, strict=True):
        ours.assign(theirs)


def _load(path: str, argument: str = "model") -> keras.Model:
    if not os.path.isfile(path):
        raise ModelError(f"`{argument}` ('{path}'): there is no such file.")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"`{argument}` ('{path}') is not a .keras file.")
    try:
        # Safe mode: a file must not bring code that runs.
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # A broken archive or config raises any type.
        raise ModelError(
            line(f"`{argument}` ('{path}') cannot be loaded", error)
        ) from error


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


def _check(name: str, model, input_shape: Shape) -> None:
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
    for layer in model._flatten_layers(include_self=False):
        policy = layer.dtype_policy
        if (policy.compute_dtype, policy.variable_dtype) != ("float32", "float32"):
            raise ModelError(
                f"`model` ('{name}') must be float32; layer '{layer.name}' is "
                f"{policy.name}."
            )


def _check_output(name: str, model: keras.Model, num_classes: int) -> None:
    given = model.outputs[0].shape[1:]
    if tuple(given) != (num_classes,):
        raise ModelError(
            f"`model` ('{name}') gives {tuple(given)} for each image; the "
            f"{num_classes} classes need ({num_classes},)."
        )


def line(what: str, why: object) -> str:
    """One line of at most some 400 characters."""
    reason = " ".join(str(why).split()) or type(why).__name__
    return f"{what}: {reason[:300].rstrip('. ')}."
