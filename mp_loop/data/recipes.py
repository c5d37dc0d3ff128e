"""What is done with training examples, one change after the other.

recipe = Recipe("flip_crop", rand_augment=9, mixup=0.2)
for change in recipe.changes(source, words, seed, epoch):
images, labels = change.apply(images, labels, *change.drawn)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mp_loop.config import choices, errors, sections
from mp_loop.data import augmentation, mixing, rand_augment, sources

# Of images, labels, and what was drawn for each example.
_Apply = Callable[..., tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of examples.

    Attributes:
      drawn: arrays with a number for each position of an epoch.
      apply: makes the change; it takes images uint8 or float32 [b, h, w, c], labels,
        and the numbers of these examples, and returns images and labels.
    """

    drawn: tuple[np.ndarray, ...]
    apply: _Apply


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done with training examples.

    Attributes:
      augment: one of `choices.AUGMENTATIONS`.
      max_shift: pixels by which `flip_shift` moves images at most.
      rand_augment: magnitude of RandAugment; 0: none.
      mixup: alpha of MixUp; 0: none.
      cutmix: alpha of CutMix; 0: none.
    """

    augment: str = "none"
    max_shift: int = 4
    rand_augment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of all classes, float32 [b, classes]."""
        return self.mixup > 0 or self.cutmix > 0

    def check(self, source: sources.Source, batch_size: int, replicas: int) -> None:
        """Refuses what does not fit the data.

        Raises:
          DataError: it does not.
        """
        if self.augment not in choices.AUGMENTATIONS:
            raise errors.DataError(
                f"`augment` ('{self.augment}') must be one of {choices.AUGMENTATIONS}."
            )
        if source.masks is not None and self.rand_augment:
            raise errors.DataError("`rand_augment` would move images from their masks.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and source.kind != "image":
                raise errors.DataError(
                    f"`{field.name}` ('{value}') is for images, not for {source.kind}s."
                )
        if self.augment == "flip_shift" and self.max_shift >= min(
            source.input_shape[:2]
        ):
            raise errors.DataError(
                f"`max_shift` ({self.max_shift}) must be less than the sides of images "
                f"of {source.input_shape[0]} x {source.input_shape[1]}."
            )
        if self.mixes and source.task != "classification":
            raise errors.DataError("`mixup` and `cutmix` are for one class per image.")
        if self.mixes and batch_size // replicas % 2:
            raise errors.DataError(
                f"`batch_size` ({batch_size}) must be even on each of {replicas} "
                "replicas: `mixup` and `cutmix` mix examples in pairs."
            )

    def changes(
        self, source: sources.Source, words: np.ndarray, seed: int, epoch: int
    ) -> list[Change]:
        """Draws the changes of an epoch.

        Args:
          source: the data set.
          words: of `order.random_words`.
          seed: of `training_batches`.
          epoch: likewise.
        """
        count = len(words)
        found = []
        if self.augment != "none":
            draw, change, of_masks = augmentation.AUGMENTATIONS[self.augment]
            given = {"size": source.input_shape[:2]}
            if self.augment == "flip_shift":
                given = {"max_shift": self.max_shift}
                draw = functools.partial(draw, **given)
            change = functools.partial(change, **given)
            of_masks = functools.partial(of_masks, **given)
            apply = _of_images(change)
            if source.masks is not None:
                apply = _of_both(change, of_masks)
            found.append(Change(draw(words[:, 1]), apply))
        if self.rand_augment:
            change = functools.partial(rand_augment.change, magnitude=self.rand_augment)
            drawn = rand_augment.draw(count, seed, epoch)
            found.append(Change(drawn, _of_images(change)))
        if self.mixes:
            drawn = mixing.draw(count, seed, epoch, self.mixup, self.cutmix)
            mix = functools.partial(mixing.mix, classes=source.num_classes)
            found.append(Change(drawn, mix))
        return found


def from_settings(data: sections.Data) -> Recipe:
    """Returns the recipe of the settings."""
    return Recipe(
        data.augment, data.max_shift, data.rand_augment, data.mixup, data.cutmix
    )


def _of_both(
    change: Callable[..., tf.Tensor], of_masks: Callable[..., tf.Tensor]
) -> _Apply:
    return lambda images, labels, *drawn: (
        change(images, *drawn),
        of_masks(labels, *drawn),
    )


def _of_images(change: Callable[..., tf.Tensor]) -> _Apply:
    return lambda images, labels, *drawn: (change(images, *drawn), labels)
