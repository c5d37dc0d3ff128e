"""What a segmentation gets right and wrong, class by class of its pixels.

    scores = MaskScores(source)
    for labels, outputs, weights in batches:
        scores.add(labels, outputs, weights)
    scores.values()             # pixels of each class, and what is taken for what
    scores.shown()              # {"worst": places of images}
    scores.example(place)       # how much is right, and both masks over the image

A pixel with an output that is NaN or infinite has no predicted class.
"""

from __future__ import annotations

import numpy as np

from mp_loop.config import json_values
from mp_loop.data import shown_examples, sources
from mp_loop.run import class_scores


class MaskScores:
    """Counts predicted pixels, and remembers the worst images."""

    def __init__(self, source: sources.Source):
        """Begins with no image of a data set's test split."""
        self._source = source
        # Pixels by class, and predicted class; the last column is of no prediction.
        self._pixels = np.zeros((source.num_classes, source.num_classes + 1), np.int64)
        self._images = 0
        # Share of right pixels, place, true and predicted mask of the worst; -1 in a
        # true mask is a pixel that does not count.
        self._worst: list[tuple[float, int, np.ndarray, np.ndarray]] = []

    def add(
        self, labels: np.ndarray, outputs: np.ndarray, weights: np.ndarray | None = None
    ) -> None:
        """Counts a batch.

        Args:
          labels: class numbers, [n, h, w].
          outputs: [n, h, w, classes], of any floating dtype.
          weights: [n, h, w], 0 where a pixel does not count.
        """
        size = self._source.num_classes
        usable = np.isfinite(outputs).all(axis=-1)
        predicted = np.where(usable, outputs.argmax(axis=-1), size)
        counts = np.ones(labels.shape, bool) if weights is None else weights > 0
        for true, found, counted in zip(labels, predicted, counts, strict=True):
            pairs = true[counted].astype(np.int64) * (size + 1) + found[counted]
            number = np.bincount(pairs, minlength=self._pixels.size)
            number = number.reshape(self._pixels.shape)
            self._pixels += number
            right = float(np.trace(number) / max(number.sum(), 1))
            masks = (np.where(counted, true, -1), found)
            small = (mask.astype(np.int16) for mask in masks)
            self._worst.append((right, self._images, *small))
            self._images += 1
        self._worst.sort(key=lambda one: one[0])
        del self._worst[class_scores.MOST_WORST :]

    def values(self) -> dict[str, json_values.Json]:
        """Returns what test_results.json holds of all images together.

        `classes` and `confused` are as of a classification (`class_scores`), of pixels,
        and each class has the `color` of its masks.
        """
        known = self._pixels[:, :-1]
        label, other = np.nonzero(known * ~np.eye(len(known), dtype=bool))
        names = ("name", "count", "predicted", "right", "color")
        columns = (
            self._source.class_names,
            self._pixels.sum(axis=1).tolist(),
            known.sum(axis=0).tolist(),
            np.diagonal(known).tolist(),
            map(shown_examples.color_of, range(len(known))),
        )
        return {
            "task": "segmentation",
            "examples": self._images,
            "pixels": int(self._pixels.sum()),
            "unusable": int(self._pixels[:, -1].sum()),
            "classes": [
                dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
            ],
            "confused": class_scores.confused(label, other, known[label, other]),
        }

    def shown(self) -> dict[str, list[int]]:
        """Returns the places of the images with the fewest right pixels, in order."""
        return {"worst": [place for _, place, *_ in self._worst]}

    def example(self, place: int) -> dict[str, json_values.Json]:
        """Returns the share of right pixels of an image, and pictures of its masks.

        Args:
          place: of an image that `shown` returns.
        """
        right, _, true, predicted = next(x for x in self._worst if x[1] == place)
        predicted = np.where(predicted < self._source.num_classes, predicted, -1)
        found: dict[str, json_values.Json] = {"right": right}
        for name, mask in (("true_mask", true), ("predicted_mask", predicted)):
            picture = shown_examples.masked(self._source, place, mask)
            found |= {name: picture} if picture else {}
        return found
