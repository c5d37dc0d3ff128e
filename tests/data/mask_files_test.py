"""Numbers of pixels in PNG files."""

import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import mask_files


def png(rows, bits, colors, more=()):
    """A PNG of lines of bytes."""
    height, width = len(rows), 8 * len(rows[0]) // bits
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colors, 0, 0, 0)),
        *more,
        (b"IDAT", zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))),
        (b"IEND", b""),
    ]
    found = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        check = struct.pack(">I", zlib.crc32(name + body))
        found += struct.pack(">I", len(body)) + name + body + check
    return found


COLORS = (b"PLTE", bytes([0, 0, 0, 128, 0, 0, 0, 128, 0]))
CLEAR = (b"tRNS", bytes([0, 255]))
FILES = {
    "gray": (png([[0, 7], [255, 1]], 8, 0), [[0, 7], [255, 1]]),
    "a table of colors": (
        png([[0, 2], [1, 0]], 8, 3, (COLORS, CLEAR)),
        [[0, 2], [1, 0]],
    ),
    "4 bits": (png([[0x0F], [0x21]], 4, 0), [[0, 15], [2, 1]]),
    "a small table": (png([[0b00011011]], 2, 3, (COLORS,)), [[0, 1, 2, 3]]),
    "one bit": (png([[0b10000001]], 1, 0), [[1, 0, 0, 0, 0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", FILES)
def test_numbers_are_those_that_are_stored(tmp_path, name):
    content, wanted = FILES[name]
    (tmp_path / "a.png").write_bytes(content)
    found = mask_files.decoded(str(tmp_path / "a.png"))
    assert found.dtype == np.uint8 and found.tolist() == wanted


def test_what_was_written_is_read(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    (tmp_path / "a.png").write_bytes(mask_files.encoded(mask))
    np.testing.assert_array_equal(mask_files.decoded(str(tmp_path / "a.png")), mask)


GRAY = FILES["gray"][0]
BAD = {
    "a JPEG": (tf.io.encode_jpeg(np.zeros((2, 2, 1), np.uint8)).numpy(), "JPEG"),
    "colors": (png([[1, 2, 3]], 8, 2), "gray or with a table of colors"),
    "16 bits": (png([[1, 2]], 16, 0), "8 bits at most"),
    "half a file": (GRAY[:50], "damaged"),
    "another byte": (GRAY[:45] + b"?" + GRAY[46:], "damaged"),
    "nothing": (b"", "must be a PNG"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(tmp_path, name):
    content, said = BAD[name]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(errors.DataError, match=said):
        mask_files.decoded(str(tmp_path / "a.png"))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(errors.DataError, match="No such file"):
        mask_files.decoded(str(tmp_path / "a.png"))
