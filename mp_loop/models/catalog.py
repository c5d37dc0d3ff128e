"""Models by name.

    model = catalog.build("resnet20", (32, 32, 3), num_classes=10, seed=0)

Every model is a float32 Keras model from images (or rows of numbers) to logits:
[batch, h, w, c] to [batch, num_classes], without softmax. The same arguments give the
same initial weights, whatever random numbers were drawn before. Valid names:

    mlp                  two hidden layers of 256; also for rows: [batch, columns]
    cnn                  three stages of 3x3 convolutions with batch norm
    resnet9              fewer, wider layers than resnet20: learns in fewer epochs
    resnet20, 32, ...    He et al. 2016, section 4.2: any resnet{6n+2}
    vit_tiny             four pre-norm attention blocks over patches
    MobileNetV2, ...     every architecture of keras.applications, any case
    folder/model.keras   a saved model
    package.module:f     f(input_shape, num_classes): this runs your code
    unet                 four sizes of 3x3 convolutions; gives logits of each pixel

`resnet50` and `resnet152` are 6n+2 too; these names mean keras.applications'.

With pretrained weights an architecture of keras.applications is a feature extractor
with a new head, and so is a saved model without its top:

    model = catalog.build("MobileNetV2", (160, 160, 3), 14, weights="imagenet")
    preprocess = applications.preprocessing("auto", "MobileNetV2", "imagenet")
    trainable_layers.freeze(model, "BN|Conv1")
"""

from __future__ import annotations

import difflib
import re

import keras

from mp_loop.config import errors
from mp_loop.data import user_code
from mp_loop.models import (
    applications,
    checks,
    heads,
    language,
    saved_models,
    small_networks,
)


def build(
    name: str,
    input_shape: heads.Shape,
    num_classes: int,
    seed: int = 0,
    weights: str = "",
    dropout: float = 0.0,
    per_pixel: bool = False,
) -> keras.Model:
    """Builds a float32 model whose outputs are logits.

    Args:
      name: see the table in the module's docstring.
      input_shape: (h, w, c) of one image, or (columns,) of one row of numbers, which
        `mlp` takes, and a user's models may.
      num_classes: the length of the logits; at least 1. Of a regression, the number of
        targets: its outputs are standardized targets in the place of logits.
      seed: of the initial weights and of dropout. `keras.utils.set_random_seed` is
        called with it, which sets the global seeds of Python, NumPy and TensorFlow. A
        saved model's weights do not depend on it.
      weights: "" for random weights; "imagenet" for those that keras.applications
        downloads; or a file, `.keras` or `.weights.h5`, with the weights of the model,
        or of an architecture without its top (`.keras`: also with another top).
      dropout: dropout rate before the head of pretrained features.
      per_pixel: whether logits are those of each pixel, [batch, h, w, num_classes].

    Returns:
      A `keras.Model` with one input and one output. A user's model may end in a
      softmax: see `heads.from_logits`.

    Raises:
      ModelError: unknown name, unreadable file, an input too small for the
        architecture, weights of another model, or a model that does not fit the
        arguments.
    """
    input_shape = tuple(input_shape)
    _check_arguments(name, input_shape, num_classes, seed)
    make = small_networks.PER_PIXEL.get(name.lower()) if per_pixel else None
    make = make or _maker(name, weights)
    keras.utils.set_random_seed(seed)
    model = make(input_shape, num_classes)
    checks.check_input(name, model, input_shape)
    features = len(model.outputs[0].shape) == 4 and not per_pixel

    def remake(shape: heads.Shape) -> keras.Model:
        return make(shape, num_classes)

    if weights not in ("", "imagenet") and features:
        saved_models.load_weights(weights, model, remake)
    if features:
        model = heads.with_head(model, num_classes, dropout)
    wanted = (*input_shape[:-1], num_classes) if per_pixel else (num_classes,)
    checks.check_output(name, model, wanted)
    if weights not in ("", "imagenet") and not features:
        saved_models.load_weights(weights, model, remake)
    return model


def _check_arguments(
    name: str, input_shape: heads.Shape, num_classes: int, seed: int
) -> None:
    """Refuses what no model can be built of."""
    if len(input_shape) not in (1, 3) or not all(
        isinstance(n, int) and n > 0 for n in input_shape
    ):
        raise errors.ModelError(
            f"`input_shape` ({input_shape}) must be (h, w, c) or (columns,), positive."
        )
    if num_classes < 1:
        raise errors.ModelError(f"`num_classes` ({num_classes}) must be at least 1.")
    if not 0 <= seed < 2**32:
        raise errors.ModelError(f"`seed` ({seed}) must be in [0, 2**32).")
    if len(input_shape) == 1 and not _takes_rows(name):
        raise errors.ModelError(
            f"`model` ('{name}') is for images; rows of numbers need mlp, "
            "package.module:function or a path ending in .keras."
        )


def _takes_rows(name: str) -> bool:
    """Tells whether a model may be one of rows of numbers."""
    if name.startswith(language.PREFIX):
        return False
    return name.lower() == "mlp" or name.endswith(".keras") or ":" in name


def _maker(name: str, weights: str) -> heads.Maker:
    """Finds what makes the model of a name."""
    architectures = applications.architectures()
    if weights == "imagenet" and name.lower() not in architectures:
        raise errors.ModelError(
            "`weights` (imagenet) needs an architecture of keras.applications, not "
            f"'{name}'."
        )
    if weights and name.endswith(".keras"):
        raise errors.ModelError(
            f"`weights` ({weights}): the model ('{name}') has its own."
        )
    if name.endswith(".keras"):
        return lambda input_shape, num_classes: saved_models.load(name)
    if name.startswith(language.PREFIX):
        raise errors.ModelError(
            f"`model` ('{name}') reads text: it needs a text data set."
        )
    if ":" in name:
        return user_function(name)
    if name.lower() in small_networks.BY_NAME:
        return small_networks.BY_NAME[name.lower()]
    if name.lower() in architectures and weights:
        return applications.pretrained(name, architectures[name.lower()], weights)
    if name.lower() in architectures:
        return applications.untrained(name, architectures[name.lower()])
    return _resnet(name)


def _resnet(name: str) -> heads.Maker:
    """Finds the network of a name such as resnet20; any other name is unknown."""
    depth = re.fullmatch(r"resnet([1-9]\d{0,3})", name.lower())
    if depth and int(depth[1]) >= 8 and int(depth[1]) % 6 == 2:
        return small_networks.resnet(int(depth[1]))
    if depth:
        raise errors.ModelError(f"`model` ('{name}'): the depth must be 6n+2, n >= 1.")
    own = list(small_networks.BY_NAME)
    known = [*own, *applications.architectures(), "resnet20"]
    close = difflib.get_close_matches(name.lower(), known)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise errors.ModelError(
        f"`model` ('{name}') must be one of {', '.join(own)}, resnet{{6n+2}} (such as "
        "resnet20), an architecture of keras.applications (such as MobileNetV2), a "
        f"path ending in .keras, or package.module:function.{hint}"
    )


def user_function(name: str) -> heads.Maker:
    """Imports the function of a name `package.module:function`.

    Raises:
      ModelError: there is none, or it takes other arguments.
    """
    given = f"`model` ('{name}')"
    told = "(input_shape, num_classes)"
    arguments = ((28, 28, 1), 10)
    return user_code.function(given, name, errors.ModelError, arguments, told)
