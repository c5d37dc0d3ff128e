"""Predictors for programs without Keras: a SavedModel, a file of TensorFlow Lite.

    with exports.FORMATS["saved_model"].writing(predictor, folder / "saved_model"):
        pass                 # what else is to be written, or neither

Both hold the preparation of the inputs. What is written is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mp_loop.config import errors
from mp_loop.hardware import startup
from mp_loop.rendering import whole_files
from mp_loop.run import files, prediction

if TYPE_CHECKING:  # They import TensorFlow, which takes seconds.
    import keras

# What a converter says of an operation that it does not know.
_MISSING = re.compile(r"'tf\.(\w+)' op is neither")


@dataclasses.dataclass(frozen=True)
class Format:
    """What a predictor can be exported as.

    Attributes:
      name: of the file or folder in the run folder.
      make: writes it to a path that is not there.
    """

    name: str
    make: Callable[[prediction.SavedPredictor, pathlib.Path], None]

    @contextlib.contextmanager
    def writing(
        self, predictor: prediction.SavedPredictor, path: pathlib.Path
    ) -> Iterator[None]:
        """Writes the predictor; it is at the path, and replaces what was, at the end.

        Raises:
          ModelError: the format lacks what the model computes with.
          OSError: it cannot be written.
        """
        with whole_files.replacing(path, whole_files.temporary(path)) as temporary:
            try:
                self.make(predictor, temporary)
            except OSError:
                raise
            except Exception as error:  # A converter can raise any type.
                raise errors.ModelError(
                    errors.because(f"cannot become {self.name}", error)
                ) from error
            (files.flush_tree if temporary.is_dir() else files.flush)(temporary)
            yield
            if path.is_dir():
                whole_files.remove(path)  # a folder takes the place of none


def _saved_model(predictor: prediction.SavedPredictor, path: pathlib.Path) -> None:
    """Writes a SavedModel, of texts with the tokenizer in it."""
    import keras

    model, tokenizer = predictor.model, predictor.wanted.tokenizer
    if tokenizer is not None:
        texts, tokens = tokenizer.as_input()
        model = keras.Model(texts, model(tokens))
    _export(model, path)


def _tflite(predictor: prediction.SavedPredictor, path: pathlib.Path) -> None:
    """Writes a file of TensorFlow Lite: no strings, no float64 and no such resize."""
    import tensorflow as tf

    from mp_loop.models import predictors

    model = predictors.of_squares(predictors.numbers_alone(predictor.model))
    with tempfile.TemporaryDirectory() as folder, startup.quiet_start():
        _export(model, pathlib.Path(folder) / "saved_model")
        converter = tf.lite.TFLiteConverter.from_saved_model(f"{folder}/saved_model")
        try:
            content = converter.convert()
        except Exception as error:
            missing = sorted({*_MISSING.findall(str(error))})
            if not missing:
                raise
            names = ", ".join(missing)
            raise ValueError(f"TensorFlow Lite does not have {names}") from error
    path.write_bytes(content)


def _export(model: keras.Model, path: pathlib.Path) -> None:
    model.export(str(path), format="tf_saved_model", verbose=False)


FORMATS = {
    "saved_model": Format("saved_model", _saved_model),
    "tflite": Format("model.tflite", _tflite),
}
