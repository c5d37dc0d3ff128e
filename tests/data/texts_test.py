"""Texts of files and of TFDS data sets without labels."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mp_loop.config import errors
from mp_loop.data import sequences, sources, texts
from tests.support import data_sets

BYTES = sequences.Tokens(
    lambda found: [list(text.encode()) for text in found], 256, None, 257
)


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_txt", ".txt")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def test_a_folder_is_its_text_files_in_order(tmp_path):
    write(tmp_path, b_txt=b"two", a__x_txt="\ufeffòne".encode(), c_md=b"not this")
    assert list(texts.of_file("made", str(tmp_path))) == ["òne", "two"]
    assert list(texts.of_file("made", str(tmp_path / "c_md"))) == ["not this"]


REFUSED = {
    "no text file": ({"a_md": b"x"}, "holds no .txt file"),
    "not UTF-8": ({"a_txt": b"ab\xff"}, r"a.txt' must be text in UTF-8; byte 2 is not"),
    "an empty file": ({"a_txt": b""}, "holds no text"),
    "too short": ({"a_txt": b"abc"}, "has 4 tokens: too few"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_cannot_be_used(name, tmp_path):
    files, said = REFUSED[name]
    folder = write(tmp_path, **files)
    with pytest.raises(errors.DataError, match=said) as refused:
        sources.load_texts(f"text:{folder}", BYTES, 8)
    assert "\n" not in str(refused.value)


def test_the_last_sequences_of_files_are_held_out(tmp_path):
    folder = write(tmp_path, a_txt=bytes(range(40)), b_txt=bytes(range(40)))
    made = sources.load_texts(f"text:{folder}", BYTES, 8, held_out=0.3)
    assert (len(made.train), len(made.test), made.num_classes) == (8, 3, 257)
    assert made.is_text and made.input_shape == (8,)
    whole = np.concatenate([made.train.rows, made.test.rows])[:, 1:].ravel()[:82]
    assert whole.tolist() == [*range(40), 256, *range(40), 256]


TEXT = tfds.features.Text()


def test_a_data_set_gives_its_texts_whatever_else_it_has(tmp_path):
    examples = {
        "train": [{"words": "a film", "label": 0}, {"words": "", "label": 1}],
        "validation": [{"words": "bad", "label": 0}],
    }
    data_sets.write(tmp_path, TEXT, data_sets.LABEL, examples, examples, key="words")
    made = sources.load_texts("made", BYTES, 4, str(tmp_path))
    assert bytes(made.train.rows[0, 1:].astype(np.uint8)) == b"a fi"
    assert made.test.rows[0].tolist() == [256, *b"bad", 256]


def test_a_data_set_without_texts_is_refused(tmp_path):
    pictures = data_sets.pictures(4, 4)
    data_sets.write(tmp_path, data_sets.IMAGE, data_sets.LABEL, pictures)
    with pytest.raises(errors.DataError, match="must have a Text: it has .*Image"):
        sources.load_texts("made", BYTES, 4, str(tmp_path))
