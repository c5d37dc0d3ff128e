"""The architectures of keras.applications, with and without pretrained weights."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable

import keras

from mp_loop.config import errors
from mp_loop.distributed import nests
from mp_loop.models import heads

Architecture = Callable[..., keras.Model]


def architectures() -> dict[str, Architecture]:
    """Returns the architectures by their lower-case names."""
    return {
        name.lower(): getattr(keras.applications, name)
        for name in dir(keras.applications)
        if name[0].isupper() and callable(getattr(keras.applications, name))
    }


def untrained(name: str, architecture: Architecture) -> heads.Maker:
    """Returns a function that makes the whole architecture with random weights.

    It takes (input_shape, num_classes); inputs are normalized images, and outputs are
    logits.
    """

    def make(input_shape: heads.Shape, num_classes: int) -> keras.Model:
        arguments = {
            "weights": None,
            "classes": num_classes,
            "classifier_activation": None,
        }
        if "include_preprocessing" in inspect.signature(architecture).parameters:
            arguments["include_preprocessing"] = (
                False  # The inputs are normalized already.
            )
        if re.fullmatch(r"efficientnetb\d", name.lower()):
            # Its own division by 255 cannot be removed, so it is undone first.
            inputs = keras.Input(input_shape, name="image")
            arguments["input_tensor"] = keras.layers.Rescaling(255.0)(inputs)
        try:
            return architecture(input_shape=input_shape, **arguments)
        except ValueError as error:
            raise errors.ModelError(
                errors.because(
                    f"`model` ('{name}') cannot take images of {input_shape}", error
                )
            ) from error

    return make


def pretrained(name: str, architecture: Architecture, weights: str) -> heads.Maker:
    """Returns a function that makes the architecture without its top.

    Its own preprocessing layers are kept. The weights are loaded here if they are
    "imagenet"; those of a file are not.
    """
    initial = "imagenet" if weights == "imagenet" else None

    def make(input_shape: heads.Shape, num_classes: int) -> keras.Model:
        try:
            return architecture(
                include_top=False, weights=initial, input_shape=input_shape
            )
        except Exception as error:  # A download can raise any type.
            raise errors.ModelError(
                errors.because(f"`model` ('{name}') with `weights` ({weights})", error)
            ) from error

    return make


def preprocessing(
    mode: str, name: str, weights: str
) -> Callable[[nests.AnyTensor], nests.AnyTensor] | None:
    """Returns the function that makes a pretrained model's inputs from pixels.

    Args:
      mode: as in keras.applications, "tf" (to [-1, 1]), "torch" (ImageNet's mean and
        standard deviation) or "caffe" (BGR minus ImageNet's mean); "none" (unchanged
        pixels); "dataset"; or "auto": with weights the architecture's own
        `preprocess_input`, else "dataset".
      name: of the model.
      weights: as for `catalog.build`.

    Returns:
      A function of float32 [b, h, w, 3] in [0, 255]; None for "dataset", which means
      the mean and standard deviation of the training data.
    """
    if mode == "auto" and weights:
        architecture = architectures().get(name.lower())
        if architecture is not None:
            return inspect.getmodule(architecture).preprocess_input
    if mode in ("auto", "dataset"):
        return None
    if mode == "none":
        return lambda pixels: pixels
    return functools.partial(
        keras.applications.imagenet_utils.preprocess_input, mode=mode
    )
