"""Images with their masks, of TFDS: `oxford_iiit_pet` and the like."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from mp_loop.config import errors, sections
from mp_loop.data import classes, decoding, download, masks, resizing, splitting


def load(data: sections.Data) -> decoding.Labelled:
    """Decodes both splits of a data set.

    Args:
      data: `dataset`, `data_dir`, `image_size`, `crop_pct` and `ignore_label` are read.

    Raises:
      DataError: unknown or missing data set, no image and mask among its features,
        images of unequal size without `image_size`, a mask of another size, or more
        than `decoding.MAX_DECODED_BYTES`.
    """
    name = data.dataset
    builder = download.prepared_builder(name, data.data_dir)
    keys = features(name, builder.info)
    test = splitting.of_tfds(name, builder.info.splits)
    side = resizing.whole_side(data)
    parts: list[classes.Part] = []
    for split in ("train", test):
        like = parts[0].inputs if parts else None
        parts.append(_decoded(name, builder, split, keys, side, like))
    return masks.assemble(data, tuple(parts), [], f"the split {test} holds some")


def features(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Finds the features that are the images and the masks.

    Args:
      name: of the data set.
      info: of the data set.

    Raises:
      DataError: there is not one of each.
    """
    found = info.features
    known = dict(found.items()) if hasattr(found, "items") else {}
    of_images = {
        key: value.shape[-1]
        for key, value in known.items()
        if isinstance(value, tfds.features.Image) and value.np_dtype == np.uint8
    }
    inputs = "image" if "image" in of_images else next(iter(of_images), "")
    others = [key for key, size in of_images.items() if key != inputs and size == 1]
    if len(others) == 1:
        return inputs, others[0]
    told = {key: type(value).__name__ for key, value in known.items()}
    raise errors.DataError(
        errors.because(
            f"Data set '{name}' must have an 8-bit Image and one of a single channel, "
            "its mask, for --task=segmentation",
            f"it has {told or found}",
        )
    )


def examples(
    name: str,
    builder: tfds.core.DatasetBuilder,
    split: str,
    keys: tuple[str, str],
    side: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields image and mask of each example, uint8 [1, h, w, c] and [1, h, w].

    Args:
      name: of the data set, for messages.
      builder: of the data set, prepared.
      split: its name.
      keys: the names of the features.
      side: of the squares that they are resized to; 0: unchanged.

    Raises:
      DataError: files cannot be read, or a mask is of another size than its image.
    """
    for place, batch in enumerate(decoding.stored(name, builder, split, keys, 1)):
        image, mask = batch[keys[0]], batch[keys[1]][..., 0]
        if mask.shape != image.shape[:3]:
            raise errors.DataError(
                f"Data set '{name}', split '{split}': mask {place} is "
                f"{mask.shape[1:]}, and its image {image.shape[1:3]}."
            )
        if side:
            image, mask = resizing.resized(image, side), masks.resized(mask, side)
        yield image, mask


def _decoded(
    name: str,
    builder: tfds.core.DatasetBuilder,
    split: str,
    keys: tuple[str, str],
    side: int,
    like: np.ndarray | None,
) -> classes.Part:
    """Decodes one split, in stored order; see `decoding.Decoder.decode`."""
    count = builder.info.splits[split].num_examples
    images, labels = None, None
    for place, (image, mask) in enumerate(examples(name, builder, split, keys, side)):
        if images is None:
            images = decoding.allocate(name, count, image, like)
            labels = np.empty((count, *images.shape[1:3]), np.uint8)
        if image.shape[1:] != images.shape[1:]:
            raise decoding.unequal(name, images.shape[1:], image)
        images[place], labels[place] = image[0], mask[0]
    return classes.Part(images, labels)
