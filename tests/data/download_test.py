"""What a download leaves on the disk."""

import pathlib

import pytest
import tensorflow_datasets as tfds

from mp_loop.config import errors
from mp_loop.data import download, sources
from tests.support import data_sets


def test_without_network_nothing_is_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(download.urllib.request, "getproxies", dict)
    monkeypatch.setattr(download.socket, "create_connection", refuse)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    folder = tmp_path / "a" / "b"
    with pytest.raises(errors.DataError, match="no network.*--data_dir") as error:
        sources.load("cifar100", str(folder))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("made", ["version", "name", "nothing"])
def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch, made):
    def fail(self, download_dir=None, download_config=None):
        target = pathlib.Path(self.data_path)
        if made != "nothing":
            (target if made == "version" else target.parent).mkdir(parents=True)
        (pathlib.Path(download_dir) / "half.tar.gz.tmp").write_text("half")
        raise ConnectionError("reset\nby peer")

    monkeypatch.setattr(download, "has_network", lambda address: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    kept = tmp_path / "kept"
    kept.mkdir()
    for folder in (kept, tmp_path / "new" / "er"):
        with pytest.raises(errors.DataError, match="--data_dir.*: reset by peer"):
            sources.load("cifar100", str(folder))
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_a_download_that_works_is_read(tmp_path, monkeypatch):
    def prepare(self, download_dir=None, download_config=None):
        # The embedded files under the names of mnist 3.0.1.
        target = pathlib.Path(self.data_path)
        target.mkdir(parents=True)
        for file in data_sets.embedded_folder().iterdir():
            content = file.read_bytes()
            if file.suffix == ".json":
                content = content.replace(b"fashion_mnist_mini", b"mnist")
                content = content.replace(b'"1.0.0"', b'"3.0.1"')
            renamed = file.name.replace("fashion_mnist_mini", "mnist")
            (target / renamed).write_bytes(content)
        self.info.read_from_directory(str(target))

    monkeypatch.setattr(download, "has_network", lambda address: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
    assert len(sources.load("mnist", str(tmp_path)).train) == 6000
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]
