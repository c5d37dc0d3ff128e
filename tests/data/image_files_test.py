"""Which image files are found, and what is read from one."""

import struct
import threading

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import image_files
from tests.support import photos


def test_all_images_below_a_folder_are_listed_in_order(tmp_path):
    names = ["b/2.JPG", "b/1.png", "a.webp", "c/d/e.bmp"]
    others = ["notes.txt", ".hidden.png", ".git/x.png", "__MACOSX/x.png", "b/._1.png"]
    photos.write(tmp_path, dict.fromkeys(names + others, b""))
    (tmp_path / "linked").symlink_to(tmp_path / "c")
    listed = image_files.listed(str(tmp_path))
    assert listed == ["a.webp", "b/1.png", "b/2.JPG", "c/d/e.bmp", "linked/d/e.bmp"]
    (tmp_path / "c/loop").symlink_to(tmp_path)
    with pytest.raises(errors.DataError, match="'c/loop' is a link to one that it is"):
        image_files.listed(str(tmp_path))
    with pytest.raises(errors.DataError, match="cannot be read: No such file"):
        image_files.listed(str(tmp_path / "none"))


GRAY = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
ALPHA = np.full((4, 4, 1), 7, np.uint8)
COLORS = np.stack([GRAY[..., 0], 2 * GRAY[..., 0], 255 - GRAY[..., 0]], axis=-1)
STORED = {
    "gray": (GRAY, GRAY.repeat(3, -1)),
    "gray and alpha": (np.concatenate([GRAY, ALPHA], -1), GRAY.repeat(3, -1)),
    "colors": (COLORS, COLORS),
    "colors and alpha": (np.concatenate([COLORS, ALPHA], -1), COLORS),
}


@pytest.mark.parametrize("name", STORED)
def test_images_become_equal_in_channels(tmp_path, name):
    stored, wanted = STORED[name]
    photos.write(tmp_path, {"x.png": stored})
    path = str(tmp_path / "x.png")
    np.testing.assert_array_equal(image_files.decoded(path), wanted)
    gray = image_files.decoded(path, channels=1)
    if "gray" in name:
        np.testing.assert_array_equal(gray, GRAY)
    else:
        np.testing.assert_array_equal(gray, tf.image.rgb_to_grayscale(COLORS))


def bmp(colors):
    """A BMP of 4 x 4 pixels of 8 bits: numbers of colors."""
    table = b"".join(bytes([b, g, r, 0]) for r, g, b in colors)
    offset = 54 + len(table)
    header = struct.pack("<2sIHHI", b"BM", offset + 16, 0, 0, offset)
    header += struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 8, 0, 16, 0, 0, len(colors), 0)
    return header + table + GRAY[::-1].tobytes()


def test_a_bmp_of_grays_is_read_and_one_with_a_table_of_colors_is_not(tmp_path):
    grays = [(i, i, i) for i in range(256)]
    files = {"gray.bmp": bmp(grays), "colors.bmp": bmp(grays[::-1])}
    photos.write(tmp_path, files)
    read = image_files.decoded(str(tmp_path / "gray.bmp"), channels=1)
    np.testing.assert_array_equal(read, GRAY)
    with pytest.raises(errors.DataError, match="BMP of 8 bits with a table of colors"):
        image_files.decoded(str(tmp_path / "colors.bmp"))


UNREADABLE = {
    "empty": (b"", "Input is empty."),
    "text": (b"not an image", "Unknown image file format. One of JPEG"),
    "cut": (photos.content(photos.flat(3))[:-30], "Invalid PNG data"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_decoded_has_a_reason(tmp_path, name):
    made, reason = UNREADABLE[name]
    photos.write(tmp_path, {"x.jpg": made})
    with pytest.raises(errors.DataError) as refused:
        image_files.decoded(str(tmp_path / "x.jpg"))
    assert str(refused.value).startswith(reason) and "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_has_a_reason(tmp_path):
    with pytest.raises(errors.DataError, match="^No such file or directory.$"):
        image_files.decoded(str(tmp_path / "x.jpg"))


def test_results_come_in_order_and_errors_where_they_belong():
    assert list(image_files.in_parallel(str, range(50))) == [*map(str, range(50))]
    results = image_files.in_parallel(lambda x: 1 // x, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_so_many_results_wait_for_a_slow_reader():
    taken = []
    values = (taken.append(x) for x in range(900))
    next(image_files.in_parallel(str, values, ahead=500))
    assert len(taken) >= 500


def test_a_reader_that_stops_does_not_wait_for_what_is_read():
    go_on = threading.Event()
    results = image_files.in_parallel(lambda x: x or go_on.wait(), [1, *[0] * 100])
    assert next(results) == 1
    closing = threading.Thread(target=results.close)
    closing.start()
    closing.join(timeout=60)
    stuck = closing.is_alive()
    go_on.set()
    assert not stuck
