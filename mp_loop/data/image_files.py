"""Image files: which there are in a folder, and the pixels of one.

    for name in image_files.listed("photos"):            # "cat/1.jpg", ...
        pixels = image_files.decoded(f"photos/{name}")   # uint8 [h, w, 3]

Formats are those of `tf.io.decode_image`: JPEG, PNG, BMP, the first frame of a GIF, and
what newer versions of TensorFlow add (WebP). Pixels are as they are stored: an
orientation in EXIF is ignored, as everywhere in TensorFlow.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import mimetypes
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import bad_examples, resizing
from mp_loop.hardware import processor

# Python's own table: the system's differ.
_TYPES = mimetypes.MimeTypes()

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def is_image(name: str) -> bool:
    """Tells from its suffix whether a file is an image, of any format."""
    kind = _TYPES.guess_type(name, strict=False)[0]
    return bool(kind) and kind.startswith("image/")


def is_hidden(name: str) -> bool:
    """Tells whether a file or folder is the system's: `.DS_Store`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def listed(folder: str) -> list[str]:
    """Lists the images of a folder and of all folders in it; hidden ones are left out.

    Returns:
      Paths relative to the folder, with slashes, sorted.

    Raises:
      DataError: a folder cannot be read, or leads back to itself.
    """
    return sorted(_below(folder, "", (os.path.realpath(folder),)))


def _below(folder: str, before: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yields the images below a folder whose relative path is `before`."""
    for entry in entries(os.path.join(folder, before)):
        name = f"{before}{entry.name}"
        if not entry.is_dir():
            if is_image(entry.name):
                yield name
            continue
        real = os.path.realpath(entry)
        if real in above:
            raise errors.DataError(
                f"The folder '{bad_examples.readable(name)}' is a link to one that it "
                "is in."
            )
        yield from _below(folder, f"{name}/", (*above, real))


def entries(folder: str) -> list[os.DirEntry]:
    """Returns the files and folders in a folder, by name; hidden ones are left out.

    Raises:
      DataError: it cannot be read.
    """
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        name = bad_examples.readable(folder)
        raise errors.DataError(
            errors.because(f"The folder '{name}' cannot be read", error.strerror)
        ) from error
    return [entry for entry in found if not is_hidden(entry.name)]


def decoded(path: str, channels: int = 3, size: int = 0) -> np.ndarray:
    """Decodes an image file.

    Args:
      path: of the file; its contents say what format it has.
      channels: 3: gray is repeated; 1: colors become gray by the weights of
        `tf.image.rgb_to_grayscale`. Transparency is dropped, which leaves the colors
        that are stored under it. 16 bits become 8.
      size: side of the square that becomes of it, see `resizing.resized`; 0: as it is.

    Returns:
      uint8 [h, w, channels].

    Raises:
      DataError: it cannot be read; the message is the reason, without the path.
    """
    return decoded_content(content(path), channels, size)


def content(path: str) -> bytes:
    """Reads a file.

    Raises:
      DataError: it cannot be read; the message is the reason, without the path.
    """
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise errors.DataError(f"{error.strerror}.") from error


def decoded_content(content: bytes, channels: int = 3, size: int = 0) -> np.ndarray:
    """Decodes what an image file holds; see `decoded`."""
    if _has_color_table(content):
        raise errors.DataError("A BMP of 8 bits with a table of colors is not read.")
    try:
        return reader(channels, size)(content).numpy()
    except tf.errors.OpError as error:
        # What TensorFlow says of a graph: where it was defined, then the reason.
        reason = error.message.partition("\n\t [[")[0].rpartition("\n")[2]
        raise errors.DataError(reason) from error


@functools.cache
def reader(channels: int, size: int) -> Callable[[bytes], tf.Tensor]:
    """Makes the function of a file's contents: one call, whatever it consists of.

    Args:
      channels: as for `decoded`.
      size: as for `decoded`.
    """

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def read(content: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU:0"):
            pixels = tf.io.decode_image(content, expand_animations=False)
            pixels.set_shape([None, None, None])
            pixels = _with_channels(pixels, channels)
            if size:
                pixels = resizing.squares(pixels[tf.newaxis], size)[0]
            return pixels

    return read


def _with_channels(pixels: tf.Tensor, channels: int) -> tf.Tensor:
    """Makes uint8 [h, w, channels] of gray or colors, with or without alpha."""
    pixels = pixels[..., : tf.where(tf.shape(pixels)[-1] > 2, 3, 1)]
    height, width, stored = tf.unstack(tf.shape(pixels))
    if channels != 1:
        return tf.broadcast_to(pixels, [height, width, channels])
    colors = tf.broadcast_to(pixels, [height, width, 3])
    return tf.cond(
        stored == 1, lambda: pixels, lambda: tf.image.rgb_to_grayscale(colors)
    )


def _has_color_table(content: bytes) -> bool:
    """Tells whether a BMP's pixels are numbers of colors, other than grays.

    TensorFlow takes the numbers for grays.
    """
    if content[:2] != b"BM" or content[28:30] != b"\x08\x00":
        return False
    start = 14 + int.from_bytes(content[14:18], "little")
    end = int.from_bytes(content[10:14], "little")
    whole = (end - start) // 4 * 4
    if whole <= 0:
        return False
    colors = np.frombuffer(content[start : start + whole], np.uint8).reshape(-1, 4)
    return bool(np.any(colors[:, :3] != np.arange(len(colors))[:, np.newaxis]))


def in_parallel(
    function: Callable[[_In], _Out], values: Iterable[_In], ahead: int = 0
) -> Iterator[_Out]:
    """Yields the results of a function in the order of its arguments.

    It runs in one thread for each core, a little ahead of its reader.

    Args:
      function: of one value; may be called by several threads.
      values: its arguments, taken one after the other.
      ahead: how many results wait for a reader that is slow now and then, at least.
    """
    cores = processor.usable_cores() or 1
    left = iter(values)
    pool = concurrent.futures.ThreadPoolExecutor(cores)
    try:
        first = itertools.islice(left, max(4 * cores, ahead))
        begun = collections.deque(pool.submit(function, value) for value in first)
        while begun:
            result = begun.popleft().result()
            for value in itertools.islice(left, 1):
                begun.append(pool.submit(function, value))
            yield result
    finally:
        # A reader that stops leaves this to the garbage collector, perhaps in a thread
        # that is just being started: to wait for other threads there would be for good.
        pool.shutdown(wait=False, cancel_futures=True)
