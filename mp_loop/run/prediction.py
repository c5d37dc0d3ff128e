"""Predictions of a finished run.

    predictor = prediction.SavedPredictor.read(folder, config)
    examples = raw_examples.read(config.data, predictor.wanted, split="test")
    for found in prediction.of(predictor, examples, batch_size=128):
        found.example.name, found.class_name, found.probability, found.numbers

Whether a folder can be used is known before TensorFlow is loaded: `refuse_unfinished`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mp_loop.config import errors, settings
from mp_loop.run import files, records

if TYPE_CHECKING:  # They import TensorFlow, which takes seconds.
    import keras

    from mp_loop.data import raw_examples


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says about an example.

    Attributes:
      example: the example.
      class_name: of the most probable class; "" if the example cannot be read.
      probability: of that class.
      numbers: of a regression, its targets in the units of the data, and no class; of
        several labels the probability of each, and no class.
      mask: of a segmentation, the number of each pixel's class, uint8 [h, w].
    """

    example: raw_examples.Example
    class_name: str = ""
    probability: float = 0.0
    numbers: tuple[float, ...] = ()
    mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class SavedPredictor:
    """The predictor of a run, and what its inputs are.

    Attributes:
      model: see `predictors.make`.
      wanted: what it takes.
    """

    model: keras.Model
    wanted: raw_examples.Wanted

    @classmethod
    def read(cls, folder: pathlib.Path, config: settings.Config) -> SavedPredictor:
        """Loads the predictor of a finished run.

        Args:
          folder: of the run.
          config: its settings.

        Raises:
          ModelError: it cannot be loaded.
        """
        import keras

        from mp_loop.data import raw_examples, resizing, targets
        from mp_loop.models import language, predictors, saved_models

        _register_layers(config.model.model)
        tokenizer = None
        if (folder / records.TOKENIZER_FOLDER).exists():
            path = folder / records.TOKENIZER_FOLDER
            tokenizer = language.saved_tokenizer(str(path))
        model = saved_models.load(str(folder / records.PREDICTOR_FILE))
        # Keras 3.10 makes a list of the one input of a model that it loads.
        model = keras.Model(model.inputs[0], model.output, name=model.name)
        side = 0 if tokenizer else resizing.whole_side(config.data)
        shape = tuple(model.inputs[0].shape[1:])
        if side:
            shape = (side, side, shape[-1])
        columns = _names(folder / records.COLUMNS_FILE)
        names = predictors.class_names(model)
        named: tuple[str, ...] = ()
        if config.model.task == "segmentation":
            names = _names(folder / records.CLASSES_FILE)
        elif not names:
            count = model.output["prediction"].shape[-1]
            named = targets.names_of(config.data.label_column, count)
        wanted = raw_examples.Wanted(
            shape,
            side,
            names,
            tokenizer,
            columns,
            named,
            config.model.task,
            predictors.mask_values(model),
        )
        return cls(model, wanted)

    def __call__(self, inputs: Sequence[bytes | np.ndarray]) -> list[dict[str, object]]:
        """Returns what a `Prediction` holds of each example, by name."""
        is_text = isinstance(inputs[0], bytes)
        batch = self.wanted.tokenizer(inputs) if is_text else np.stack(inputs)
        found = self.model.predict_on_batch(batch)
        if self.wanted.task == "regression":
            return [{"numbers": tuple(row.tolist())} for row in found["prediction"]]
        if self.wanted.task == "segmentation":
            return [{"mask": mask} for mask in found["mask"]]
        if self.wanted.task == "multilabel":
            rows = np.round(found["probability"].astype(np.float64), 6)
            return [{"numbers": tuple(row.tolist())} for row in rows]
        return [
            {"class_name": name.decode(), "probability": float(probability)}
            for name, probability in zip(
                found["class"], np.max(found["probability"], axis=-1), strict=True
            )
        ]


def refuse_unfinished(folder: pathlib.Path) -> None:
    """Refuses what is no folder of a finished run with a predictor.

    Raises:
      RecordError: the message says what to do.
    """
    named = f"--run ({folder})"
    if not (folder / records.FLAGS_FILE).is_file():
        raise errors.RecordError(f"{named} must be the folder of a run.")
    resume = shlex.join(
        ["python", "-m", "mp_loop.train", f"--output_dir={folder}", "--resume"]
    )
    if not (folder / records.SUMMARY_FILE).is_file():
        raise errors.RecordError(f"{named} is not finished. Finish it with: {resume}")
    if (folder / records.PREDICTOR_FILE).is_file():
        return
    if (folder / records.CLASSES_FILE).is_file():
        raise errors.RecordError(
            f"{named} has no {records.PREDICTOR_FILE}: its model cannot be part of "
            "another one, as a warning said at its end."
        )
    raise errors.RecordError(
        f"{named} has no {records.PREDICTOR_FILE}, as runs of language models and of "
        f"earlier versions. If it is of a classifier, make it with: {resume}"
    )


def of(
    predictor: SavedPredictor,
    examples: Iterable[raw_examples.Example],
    batch_size: int,
) -> Iterator[Prediction]:
    """Predicts on examples, in their order.

    Args:
      predictor: of the run.
      examples: what `raw_examples.read` yields.
      batch_size: how many are predicted at once.

    Yields:
      One prediction for each example.
    """
    waiting: list[raw_examples.Example] = []
    readable = 0
    for example in examples:
        waiting.append(example)
        readable += not example.problem
        if readable == batch_size:
            yield from _predicted(predictor, waiting)
            waiting, readable = [], 0
    yield from _predicted(predictor, waiting)


def _predicted(
    predictor: SavedPredictor, examples: list[raw_examples.Example]
) -> Iterator[Prediction]:
    """Predicts on a few examples at once."""
    inputs = [example.inputs for example in examples if not example.problem]
    found = iter(predictor(inputs) if inputs else ())
    for example in examples:
        yield Prediction(example, **({} if example.problem else next(found)))


def _names(path: pathlib.Path) -> tuple[str, ...]:
    """Reads names of columns or classes; none where there is no such file."""
    if not path.exists():
        return ()
    try:
        content, _ = files.read_regular(path)
        return tuple(map(str, json.loads(content)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise errors.ModelError(
            errors.because(f"'{path}' cannot be read", error)
        ) from error


def _register_layers(model: str) -> None:
    """Imports what Keras must know to load a model of this name (`--model`)."""
    from mp_loop.models import catalog, language

    if ":" in model and not model.startswith(language.PREFIX):
        catalog.user_function(model)
