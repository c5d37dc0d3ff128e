"""Manifests: what is found when a file, or the manifest itself, has changed."""

import hashlib
import json

import pytest

from mp_loop.run import manifests

TENSOR = {"variable": "dense/kernel:0", "dtype": "float32", "shape": [2, 3]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state.index").write_bytes(b"index")
    (tmp_path / "state.data").write_bytes(b"data")
    manifests.write(
        tmp_path,
        manifests.Manifest(7, {"eval_loss": 0.5}, 1, True, False, {"a": TENSOR}),
    )
    return tmp_path


def sealed(folder, **changes):
    """Changes fields of a manifest and seals it again."""
    body = json.loads((folder / manifests.FILE).read_bytes().split(b"\n")[0])
    text = json.dumps(body | changes)
    seal = hashlib.sha256(text.encode()).hexdigest()
    (folder / manifests.FILE).write_text(f"{text}\n{seal}\n")


def test_a_manifest_of_an_earlier_version_is_read(folder):
    body = json.loads((folder / manifests.FILE).read_bytes().split(b"\n")[0])
    del body["since_line"]
    text = json.dumps(body)
    seal = hashlib.sha256(text.encode()).hexdigest()
    (folder / manifests.FILE).write_text(f"{text}\n{seal}\n")
    assert manifests.read(folder).since_line == {}


def test_what_is_written_is_read(folder):
    manifest = manifests.read(folder)
    manifests.verify(folder, manifest)
    assert (manifest.step, manifest.phase) == (7, 1)
    assert manifest.healthy and not manifest.retried
    assert manifest.metrics == {"eval_loss": 0.5} and manifest.tensors == {"a": TENSOR}
    assert manifest.files["state.data"] == {
        "bytes": 4,
        "sha256": hashlib.sha256(b"data").hexdigest(),
    }
    assert set(manifest.files) == {"state.data", "state.index"}


@pytest.mark.parametrize("text", [b"", b"dat", b"datA", b"data\0"])
def test_a_changed_file_is_named(folder, text):
    manifest = manifests.read(folder)
    (folder / "state.data").write_bytes(text)
    with pytest.raises(manifests.CorruptError, match=r"^state.data is not what was"):
        manifests.verify(folder, manifest)


def test_a_missing_file_is_named(folder):
    manifest = manifests.read(folder)
    (folder / "state.data").unlink()
    with pytest.raises(manifests.CorruptError, match=r"^state.data: No such file"):
        manifests.verify(folder, manifest)


INVALID = {
    "another format": {"format": 2},
    "a step that is no number": {"step": "7"},
    "no tensors": {"tensors": None},
    "a tensor without a shape": {"tensors": {"a": {"variable": "", "dtype": ""}}},
    "a file outside": {"files": {"../x": {"bytes": 1, "sha256": ""}}},
    "a metric that is no number": {"metrics": {"eval_loss": "low"}},
}


@pytest.mark.parametrize("name", INVALID)
def test_a_sealed_manifest_of_another_form_is_refused(folder, name):
    sealed(folder, **INVALID[name])
    with pytest.raises(manifests.CorruptError, match="is of another checkpoint"):
        manifests.read(folder)


@pytest.mark.parametrize("change", [lambda text: text[1:], lambda text: text + b"x"])
def test_a_manifest_that_was_changed_is_refused(folder, change):
    path = folder / manifests.FILE
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(manifests.CorruptError, match="manifest.json is not what was"):
        manifests.read(folder)
