"""Data sets of arrays.

x_train           images, uint8 [n, h, w] or [n, h, w, c]; rows of numbers,
[n, columns]; or texts, strings [n]
y_train           integers or strings, [n] or [n, 1]; of a regression numbers,
[n] or [n, targets]; of several labels 0 and 1, [n, classes];
of a segmentation integers from 0 to 255, [n, h, w]
x_test, y_test    likewise; without them, some are held out
class_names       optional: strings, of the labels 0, 1, ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import (
    classes,
    decoding,
    masks,
    multilabel,
    number_rows,
    regression,
    resizing,
    splitting,
)

NAMES = ("x_train", "y_train", "x_test", "y_test", "class_names")
_AT_ONCE = 256
_HINT = "x_test and y_test hold some"

Tokenize = Callable[[Sequence[bytes]], np.ndarray]


def make(
    data: sections.Data,
    found: Mapping[str, np.ndarray | None],
    tokenize: Tokenize | None,
    task: str = "classification",
) -> decoding.Labelled:
    """Makes a data set of arrays.

    Args:
      data: `dataset`, `image_size`, `crop_pct`, `validation_fraction` and
        `skip_bad_examples` are read.
      found: by the names in the module's docstring. Without test arrays, an example is
        held out by a hash of its index.
      tokenize: makes tokens, int32 [n, length], from n texts in UTF-8; None: there
        must be no texts.
      task: `classification`, `multilabel`, `segmentation` or `regression`: what labels
        are.

    Raises:
      DataError: a name, a dtype, a shape or a length does not fit, there is too much
        for the memory, or see `classes.assemble`.
    """
    name, bad = data.dataset, []
    _check_names(name, found, task)
    for key in set(NAMES) & set(found):
        _check_text(name, key, found[key])
    class_names = None
    if "class_names" in found:
        class_names = _of_strings(name, found["class_names"])
    kind = _kind(name, "x_train", found["x_train"], tokenize)
    if task == "segmentation" and kind != "image":
        raise errors.DataError(
            f"Data set '{name}': x_train is {_told(found['x_train'])}; "
            "--task=segmentation needs images, uint8 [n, h, w] or [n, h, w, c]."
        )
    usable = functools.partial(_usable, kind, task, bad)
    train = _part(data, found, "train", tokenize, task)
    _check_labels(name, "y_train", train.labels, class_names)
    if "x_test" in found:
        test = _part(data, found, "test", tokenize, task)
        _check_labels(name, "y_test", test.labels, class_names)
        if (
            kind != _kind(name, "x_test", found["x_test"], tokenize)
            or test.inputs.shape[1:] != train.inputs.shape[1:]
        ):
            raise errors.DataError(
                f"Data set '{name}': x_train is {_told(found['x_train'])} and x_test "
                f"{_told(found['x_test'])}: examples must have one shape."
            )
        _check_targets(name, found, train, test)
        test = usable("test", test, np.ones(len(test.labels), bool))
        train = usable("train", train, np.ones(len(train.labels), bool))
    else:
        indices = map(str, range(len(train.labels)))
        held = splitting.held_out(indices, data.validation_fraction)
        test = usable("train", train, held)
        train = usable("train", train, ~held)
    return _assembled(data, task, (train, test), bad, class_names, kind)


def _assembled(
    data: sections.Data,
    task: str,
    parts: tuple[classes.Part, classes.Part],
    bad: list[str],
    class_names: list[str] | None,
    kind: str,
) -> decoding.Labelled:
    """Makes both splits of parts to train and to evaluate on, as a task has them."""
    if task == "regression":
        return regression.assemble(data, parts, bad, _HINT, kind)
    if task == "multilabel":
        names = class_names or list(map(str, range(parts[0].labels.shape[1])))
        return multilabel.assemble(data, parts, bad, _HINT, names, kind)
    if task == "segmentation":
        return masks.assemble(data, parts, bad, _HINT, class_names)
    return classes.assemble(data, parts, bad, _HINT, class_names, kind)


def _usable(
    kind: str,
    task: str,
    bad: list[str],
    split: str,
    part: classes.Part,
    side: np.ndarray,
) -> classes.Part:
    """Returns the examples of one side, bool [n], whose numbers can be used."""
    index, labels = np.flatnonzero(side), part.labels
    if kind == "row":
        index = index[_finite(f"x_{split}", part.inputs, index, bad)]
    if task == "regression":
        index = index[_finite(f"y_{split}", labels, index, bad)]
    if task == "multilabel":
        only = multilabel.only_flags(labels)
        why = "is neither 0 nor 1"
        index = index[_finite(f"y_{split}", only, index, bad, labels, why)]
    return part.where(index)


def _finite(
    which: str,
    values: np.ndarray,
    index: np.ndarray,
    bad: list[str],
    given: np.ndarray | None = None,
    why: str = "is no finite number of float32",
) -> np.ndarray:
    """Tells which rows of an index hold finite numbers only, bool [index].

    Messages tell the value that was given, and why it is bad.
    """
    given = values if given is None else given

    def told(row: int, column: int) -> str:
        return f"{which}[{index[row]}, {column}]: {given[index[row], column]} {why}"

    return number_rows.usable(values[index], told, bad)


def _check_targets(
    name: str,
    found: Mapping[str, np.ndarray],
    train: classes.Part,
    test: classes.Part,
) -> None:
    """Refuses labels of different numbers of targets."""
    if train.labels.shape[1:] != test.labels.shape[1:]:
        raise errors.DataError(
            f"Data set '{name}': y_train is {_told(found['y_train'])} and y_test "
            f"{_told(found['y_test'])}: examples must have the same targets or labels."
        )


def _check_names(name: str, found: Mapping[str, np.ndarray | None], task: str) -> None:
    """Refuses arrays that are missing, or that would be left unread."""
    if task == "regression" and "class_names" in found:
        raise errors.DataError(
            f"Data set '{name}' has class_names, and --task=regression has no classes."
        )
    wanted = {"x_train", "y_train"}
    if {"x_test", "y_test"} & set(found):
        wanted |= {"x_test", "y_test"}
    missing = sorted(wanted - set(found))
    unread = [x for x in found if x[:2].lower() in ("x_", "y_") and x not in NAMES]
    if missing or unread:
        raise errors.DataError(
            f"Data set '{name}' must have x_train and y_train, and may have x_test, "
            f"y_test and class_names; it has {', '.join(found) or 'nothing'}."
        )


def _check_text(name: str, which: str, array: np.ndarray) -> None:
    """Refuses strings that are no text: half of a pair of UTF-16, say."""
    if array.dtype.kind != "U":
        return
    try:
        for text in array.flat:
            text.encode()
    except ValueError as error:
        raise errors.DataError(
            errors.because(f"Data set '{name}': {which} holds what is no text", error)
        ) from error


def _kind(name: str, which: str, x: np.ndarray, tokenize: Tokenize | None) -> str:
    """Tells what an array holds: `image`, `row` or `text`, which must fit the model."""
    if x.size and x.dtype == np.uint8 and x.ndim in (3, 4):
        kind = "image"
    elif x.size and x.dtype.kind in "biuf" and x.ndim == 2:
        kind = "row"
    elif x.size and x.dtype.kind == "U" and x.ndim == 1:
        kind = "text"
    else:
        raise errors.DataError(
            f"Data set '{name}': {which} is {_told(x)}; it must be images, uint8 "
            "[n, h, w] or [n, h, w, c], pixels from 0 to 255; rows of numbers, "
            "[n, columns]; or texts, [n]."
        )
    if (kind == "text") != (tokenize is not None):
        raise errors.DataError(
            f"Data set '{name}': {which} is {_told(x)}, and "
            + (
                "texts need a --model of keras_hub."
                if kind == "text"
                else "the model reads texts."
            )
        )
    return kind


def _part(
    data: sections.Data,
    found: Mapping[str, np.ndarray],
    split: str,
    tokenize: Tokenize | None,
    task: str,
) -> classes.Part:
    """Makes what is held in memory of one split; labels are as they are."""
    x, y = found[f"x_{split}"], found[f"y_{split}"]
    kind = _kind(data.dataset, f"x_{split}", x, tokenize)
    labels = _READERS[task](data.dataset, f"y_{split}", y)
    if task == "segmentation" and labels.shape[1:] != x.shape[1:3]:
        raise errors.DataError(
            f"Data set '{data.dataset}': x_{split} is {_told(x)} and y_{split} "
            f"{_told(y)}: a mask must have the size of its image."
        )
    if len(x) != len(labels):
        raise errors.DataError(
            f"Data set '{data.dataset}': x_{split} is {_told(x)} and y_{split} "
            f"{_told(y)}: there must be one label for each example."
        )
    if kind == "image":
        if task == "segmentation" and data.image_size:
            labels = masks.resized(labels, resizing.whole_side(data))
        return classes.Part(_images(data, x), labels)
    if kind == "row":
        return classes.Part(x.astype(np.float64), labels)
    return classes.Part(_tokens(data.dataset, x, tokenize), labels)


def _images(data: sections.Data, images: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, h, w, c], resized if asked."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if not data.image_size:
        return images
    size = resizing.whole_side(data)
    return _by_parts(data.dataset, lambda x: resizing.resized(x, size), images)


def _tokens(name: str, texts: np.ndarray, tokenize: Tokenize) -> np.ndarray:
    """Returns int32 [n, length]."""

    def tokens(some: np.ndarray) -> np.ndarray:
        return tokenize([text.encode(errors="replace") for text in some.tolist()])

    return _by_parts(name, tokens, texts)


def _by_parts(
    name: str, convert: Callable[[np.ndarray], np.ndarray], values: np.ndarray
) -> np.ndarray:
    """Converts examples, some at a time, if memory allows."""
    made = None
    for start in range(0, len(values), _AT_ONCE):
        some = convert(values[start : start + _AT_ONCE])
        if made is None:
            made = decoding.allocate(name, len(values), some, None)
        made[start : start + len(some)] = some
    return made


def _labels(name: str, which: str, labels: np.ndarray) -> np.ndarray:
    """Returns int64 [n] or str [n]."""
    flat = labels.reshape(-1) if labels.shape[1:] == (1,) else labels
    if flat.ndim != 1 or labels.dtype.kind not in "iuU":
        raise errors.DataError(
            f"Data set '{name}': {which} is {_told(labels)}; labels must be integers "
            "or strings, [n] or [n, 1]. --task=multilabel takes 0 and 1, [n, classes]."
        )
    return flat if flat.dtype.kind == "U" else flat.astype(np.int64)


def _targets(name: str, which: str, labels: np.ndarray) -> np.ndarray:
    """Returns float64 [n, targets]."""
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "biuf" or not labels.size:
        raise errors.DataError(
            f"Data set '{name}': {which} is {_told(labels)}; targets of a regression "
            "must be numbers, [n] or [n, targets]."
        )
    return labels.reshape(len(labels), -1).astype(np.float64)


def _flags(name: str, which: str, labels: np.ndarray) -> np.ndarray:
    """Returns float64 [n, classes]."""
    if labels.ndim != 2 or labels.dtype.kind not in "biuf" or not labels.size:
        raise errors.DataError(
            f"Data set '{name}': {which} is {_told(labels)}; labels of "
            "--task=multilabel must be 0 and 1, [n, classes]."
        )
    return labels.astype(np.float64)


def _masks(name: str, which: str, labels: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, h, w]."""
    flat = labels[..., 0] if labels.ndim == 4 and labels.shape[3] == 1 else labels
    if flat.ndim != 3 or labels.dtype.kind not in "biu" or not labels.size:
        raise errors.DataError(
            f"Data set '{name}': {which} is {_told(labels)}; labels of "
            "--task=segmentation must be integers, [n, h, w]."
        )
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high > 255:
        raise errors.DataError(
            f"Data set '{name}': {which} has numbers from {low} to {high}; those of "
            "classes must be in [0, 255]."
        )
    return flat.astype(np.uint8)


# By task: what makes an array of what was given.
_READERS = {
    "classification": _labels,
    "multilabel": _flags,
    "segmentation": _masks,
    "regression": _targets,
}


def _check_labels(
    name: str, which: str, labels: np.ndarray, class_names: Sequence[str] | None
) -> None:
    """Refuses labels that do not fit `class_names`, if there are such."""
    if class_names is None or not len(labels) or labels.ndim == 3:
        return
    if labels.ndim == 2:
        if labels.shape[1] != len(class_names):
            raise errors.DataError(
                f"Data set '{name}': {which} is {list(labels.shape)}, and there are "
                f"{len(class_names)} class_names: each needs a column."
            )
        return
    count, (low, high) = len(class_names), np.unique(labels)[[0, -1]]
    if labels.dtype.kind == "U" or low < 0 or high >= count:
        raise errors.DataError(
            f"Data set '{name}': {which} has labels from {low} to {high}; they must be "
            f"in [0, {count}), the number of class_names."
        )


def _of_strings(name: str, class_names: np.ndarray) -> list[str]:
    if class_names.dtype.kind != "U" or class_names.ndim != 1 or not len(class_names):
        raise errors.DataError(
            f"Data set '{name}': class_names is {_told(class_names)}; names of classes "
            "must be strings, [classes]."
        )
    return class_names.tolist()


def _told(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
