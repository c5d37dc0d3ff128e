"""Examples whose labels are numbers to be predicted."""

from __future__ import annotations

from mp_loop.config import errors, sections
from mp_loop.data import bad_examples, classes, decoding, targets


def assemble(
    data: sections.Data,
    parts: tuple[classes.Part, classes.Part],
    bad: list[str],
    hint: str,
    kind: str = "image",
) -> decoding.Labelled:
    """Measures the targets that there are to train on.

    Args:
      data: `dataset`, `label_column`, `validation_fraction` and `skip_bad_examples`
        are read.
      parts: to train and to evaluate on; labels are float64 [n, targets].
      bad: what was left out until here; is told, see `bad_examples.settle`.
      hint: how a user gives examples to evaluate on.
      kind: what the inputs are, see `decoding.Labelled`.

    Raises:
      DataError: what is bad is not to be left out, or there is nothing to train or to
        evaluate on.
    """
    bad_examples.settle(data.dataset, bad, data.skip_bad_examples)
    train, test = (decoding.Split(x.inputs, x.labels, x.names) for x in parts)
    if not len(train):
        raise errors.DataError(f"Data set '{data.dataset}' has no example to train on.")
    classes.check_evaluation(data, len(train), len(test), hint)
    names = targets.names_of(data.label_column, train.labels.shape[1])
    made = targets.Targets.of(train.labels, names)
    return decoding.Labelled(train, test, (), kind, targets=made)
