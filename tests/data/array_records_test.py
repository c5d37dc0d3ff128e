"""Images in ArrayRecord files are those that they were made of."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors, sections
from mp_loop.data import (
    array_records,
    batching,
    fingerprints,
    record_writing,
    sources,
)
from tests.support import data_sets, photos

pytest.importorskip("array_record")


def written(folder, dataset, **settings):
    """A store of a data set; returns its name as of `--dataset`."""
    folder.mkdir()
    record_writing.write(sections.Data(dataset=dataset, **settings), folder)
    return f"array_record:{folder}"


def photo(value, size):
    generator = np.random.default_rng(value)
    return generator.integers(0, 256, (size, size + value % 3, 3), np.uint8)


FILES = {
    f"{split}/{name}/{i}.jpg": photo(10 * len(name) + i, 10 + 2 * i)
    for split, count in (("train", 4), ("test", 2))
    for name in ("cat", "mouse")
    for i in range(count)
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of photos, and the store that was made of it; in files of two images."""
    root = tmp_path_factory.mktemp("made")
    photos.write(root / "photos", FILES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_writing, "_FILE_BYTES", 400)
        store = written(root / "store", f"folder:{root}/photos", image_size=12)
    return f"folder:{root}/photos", store


def same(source, other):
    assert source.class_names == other.class_names
    assert fingerprints.of(source) == fingerprints.of(other)
    np.testing.assert_array_equal(source.mean, other.mean)
    np.testing.assert_array_equal(source.std, other.std)
    for batches in (
        lambda x: batching.training_batches(x, 4, seed=3, epoch=1, raw=True),
        lambda x: batching.evaluation_batches(x, 4),
    ):
        data_sets.assert_same(
            data_sets.batches(batches(source)), data_sets.batches(batches(other))
        )


@pytest.mark.parametrize("size", [12, 9], ids=["as converted", "another size"])
@pytest.mark.parametrize("limit", [4.0, 1e-9], ids=["held", "as needed"])
def test_a_store_has_the_bits_of_the_photos(made, size, limit):
    folder, store = (
        sources.load(name, image_size=size, max_data_gib=limit) for name in made
    )
    assert isinstance(store.train.inputs, np.ndarray) == (limit == 4)
    same(folder, store)


def test_nothing_is_read_to_begin_where_the_size_is_that_of_the_store(
    made, monkeypatch
):
    monkeypatch.setattr(array_records.Records, "decoded", None)
    source = sources.load(made[1], image_size=12, max_data_gib=1e-9)
    assert len(list(batching.evaluation_batches(source, 4)))


def test_a_store_of_a_tfds_data_set_has_its_bits(tmp_path):
    folder = tmp_path / "tfds"
    examples = data_sets.pictures(*[4] * 8)
    data_sets.write(folder, data_sets.IMAGE, data_sets.LABEL, examples)
    settings = dict(data_dir=str(folder))
    store = written(tmp_path / "store", "made", **settings)
    same(sources.load("made", **settings), sources.load(store))


DAMAGES = {
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "a torn manifest": lambda path: (path / "manifest.json").write_text('{"form'),
    "a torn file": lambda path: next(path.glob("*.array_record")).write_bytes(b"x"),
    "no labels": lambda path: (path / "train.npz").unlink(),
    "another format": lambda path: (path / "manifest.json").write_text(
        json.dumps({"format": 2})
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_is_refused_in_one_line(made, tmp_path, name):
    store = pathlib.Path(made[1].partition(":")[2])
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in store.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    DAMAGES[name](copy)
    with pytest.raises(errors.DataError, match="convert` has made: [^\n]+$"):
        sources.load(f"array_record:{copy}", image_size=12)


def test_a_record_that_is_damaged_later_is_named(made, tmp_path):
    store = pathlib.Path(made[1].partition(":")[2])
    for path in store.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (path, *_) = sorted(tmp_path.glob("test-*.array_record"))
    content = path.read_bytes()
    broken = content.replace(b"\xff\xd8\xff", b"\0\0\0")  # where a JPEG begins
    assert broken != content
    path.write_bytes(broken)
    source = sources.load(f"array_record:{tmp_path}", image_size=12, max_data_gib=1e-9)
    with pytest.raises(tf.errors.OpError) as raised:
        list(batching.evaluation_batches(source, 2))
    said = batching.why_unreadable(raised.value)
    assert said.startswith("test/cat/0.jpg: unreadable: ") and "\n" not in said
    assert not batching.why_unreadable(tf.errors.InvalidArgumentError(None, None, "no"))


def test_what_is_bad_is_named_before_anything_is_finished(tmp_path):
    photos.write(tmp_path / "photos", FILES | {"train/cat/bad.jpg": b"bad"})
    with pytest.raises(errors.DataError, match=r"cat/bad\.jpg"):
        written(tmp_path / "store", f"folder:{tmp_path}/photos", image_size=12)
    assert not (tmp_path / "store/manifest.json").exists()
    skipped = written(
        tmp_path / "other",
        f"folder:{tmp_path}/photos",
        image_size=12,
        skip_bad_examples=True,
    )
    assert len(sources.load(skipped, image_size=12).train) == 8
