"""Models that take what users have, and say what it is.

    predictor = predictors.make(source, model)
    predictor.save("predictor.keras")

    predictor = keras.models.load_model("predictor.keras")    # without this package
    found = predictor.predict(images)        # [n, h, w, c], pixels in [0, 255]
    found["class"], found["probability"]     # bytes [n], float32 [n, classes]
    found["prediction"]                      # of a regression: float64 [n, targets]

Of a segmentation, `mask` is uint8 [n, h, w], the number that masks have for the most
probable class, in the place of `class`, and `probability` [n, h, w, classes].

Of several labels, `class` is [n, classes]: the name of each class that is more probable
than not, and "" in the place of the others.

A trained model takes inputs that `Source.prepare` made, and gives logits, or targets
that are standardized. A predictor holds that preparation, the model, softmax and the
names of the classes, or the units of the targets. It is a graph of Keras' own
operations and layers.
"""

from __future__ import annotations

import keras
import numpy as np

from mp_loop.config import errors
from mp_loop.data import sources
from mp_loop.models import heads

_SQUARES = "squares"  # the layer after which images are of one size
_STANDARDIZED = "standardized"  # the layer whose output a regression learned
_VALUES = "mask_values"  # the layer that makes the numbers of masks of class numbers
_UNITS = "units"  # the layer after which targets are in the units of the data


def make(source: sources.Source, model: keras.Model) -> keras.Model:
    """Makes the predictor of a trained model; it shares the model's weights.

    What it computes of an image that was resized is what the training computed of it:
    squares are cropped, resized and rounded as `resizing.resized` does it.

    Args:
      source: what the model was trained on.
      model: from what `source.prepare` returns to one number for each class or target.

    Returns:
      A functional model of one input: `image`, float32 [n, h, w, channels], pixels in
      [0, 255], of any height and width if the source resizes images, else of theirs;
      `row`, float64 [n, columns], in the order of `source.columns`; or `token_ids`,
      int32 [n, length], as `source.tokenize` makes them. Its outputs are `class`, the
      name of the most probable class, [n] strings in UTF-8, and `probability`, float32
      [n, classes]; of a regression `prediction`, float64 [n, targets]. Of several
      labels `class` is [n, classes], and of a segmentation there is `mask`, see above.

    Raises:
      ModelError: the model cannot be part of another one.
    """
    try:
        raw, inputs = _prepared(source)
        outputs = keras.ops.cast(model(inputs), "float32")
        if source.targets:
            units = _in_units(source.targets.std, source.targets.mean, "float64")
            outputs = keras.layers.Identity(name=_STANDARDIZED)(outputs)
            outputs = {"prediction": units(keras.ops.cast(outputs, "float64"))}
            return keras.Model(raw, outputs, name="predictor")
        several = source.task == "multilabel"
        if heads.from_logits(model):
            last = keras.layers.Softmax(dtype="float32", name="softmax")
            if several:
                last = keras.layers.Activation(
                    "sigmoid", dtype="float32", name="sigmoid"
                )
            outputs = last(outputs)
        if several:
            numbers = keras.ops.arange(1, len(source.class_names) + 1)
            found = numbers * keras.ops.cast(outputs >= 0.5, numbers.dtype)
        else:
            found = keras.ops.argmax(outputs, axis=-1)
        if source.masks is not None:
            table = keras.layers.Embedding(  # exact: a lookup in float32
                source.num_classes, 1, dtype="float32", trainable=False, name=_VALUES
            )
            numbers = keras.ops.cast(table(found)[..., 0], "uint8")
            table.set_weights([np.array(source.masks.values)[:, np.newaxis]])
            return keras.Model(
                raw, {"mask": numbers, "probability": outputs}, name="predictor"
            )
        named = _names(source.class_names, mask="" if several else None)(found)
        return keras.Model(
            raw, {"class": named, "probability": outputs}, name="predictor"
        )
    except Exception as error:  # A user's layer can raise any type.
        raise errors.ModelError(
            errors.because(f"'{model.name}' cannot be part of another model", error)
        ) from error


def class_names(predictor: keras.Model) -> tuple[str, ...]:
    """Returns the names of the classes, in the order of the probabilities.

    There is none of a regression, and a segmentation has them in no layer.
    """
    if "class" not in predictor.output:
        return ()
    names = predictor.get_layer("class")
    return tuple(map(str, names.get_vocabulary(include_special_tokens=False)))


def mask_values(predictor: keras.Model) -> tuple[int, ...]:
    """Returns the numbers that the masks of a segmentation have for its classes."""
    if "mask" not in predictor.output:
        return ()
    (values,) = predictor.get_layer(_VALUES).get_weights()
    return tuple(map(int, values[:, 0]))


def numbers_alone(predictor: keras.Model) -> keras.Model:
    """Returns a model of one output: the probabilities, or the targets in float32."""
    if "probability" in predictor.output:
        return keras.Model(predictor.inputs[0], predictor.output["probability"])
    units = predictor.get_layer(_UNITS)
    in_float32 = _in_units(units.scale, units.offset, "float32")
    standardized = predictor.get_layer(_STANDARDIZED).output
    return keras.Model(predictor.inputs[0], in_float32(standardized))


def of_squares(predictor: keras.Model) -> keras.Model:
    """Returns the part of a predictor that does not resize, from squares of its size.

    A predictor that does not resize is returned as it is.
    """
    if not any(layer.name == _SQUARES for layer in predictor.layers):
        return predictor
    squares = predictor.get_layer(_SQUARES).output
    return keras.Model(squares, predictor.output, name=predictor.name)


def _prepared(source: sources.Source) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """What a user has, and what the model takes of it."""
    if source.is_text:
        raw = keras.Input(source.input_shape, dtype="int32", name="token_ids")
        return raw, source.prepare(raw)
    shape = source.train.inputs.shape[1:]
    if source.kind == "row":
        raw = keras.Input(shape, dtype="float64", name="row")
        return raw, source.prepare(raw)
    if not source.resized_to:
        raw = keras.Input(shape, dtype="float32", name="image")
        return raw, source.prepare(raw)
    raw = keras.Input((None, None, shape[-1]), dtype="float32", name="image")
    squares = keras.ops.image.resize(
        raw,
        (source.resized_to, source.resized_to),
        antialias=True,
        crop_to_aspect_ratio=True,
    )
    # As stored in memory: whole numbers, of which float32 holds each exactly.
    whole = keras.ops.round(keras.ops.clip(squares, 0, 255))
    return raw, source.prepare(keras.layers.Identity(name=_SQUARES)(whole))


def _in_units(
    std: np.ndarray | list[float] | float,
    mean: np.ndarray | list[float] | float,
    dtype: str,
) -> keras.layers.Layer:
    """The layer that computes `Targets.in_units`."""
    scale, offset = np.asarray(std).tolist(), np.asarray(mean).tolist()
    return keras.layers.Rescaling(scale, offset, dtype=dtype, name=_UNITS)


def _names(names: tuple[str, ...], mask: str | None = None) -> keras.layers.Layer:
    """The layer that makes names of class numbers; with a mask, of which 0 is one."""
    return keras.layers.StringLookup(
        vocabulary=list(names),
        num_oov_indices=0,
        oov_token=f"{max(names, key=len)}?",  # it must not be the name of a class
        mask_token=mask,
        invert=True,
        name="class",
    )
