"""A disk that grows by a page whenever a run has filled it: every write fails once.

    pytest -m slow -s tests/claims/disk_test.py     # prints how each life ended

Each life must end with one clear line and leave nothing half-written, and the run that
comes of them all must be the run of an empty disk, bit for bit.
"""

import collections
import json
import pathlib
import re
import shlex
import shutil
import subprocess

import keras
import pytest

from mp_loop.run import manifests, records
from tests.support import lives

PAGE = 4  # KiB
RUN = (
    "--model=tests.claims.victim:model",
    "--batch_size=1000",
    "--steps=8",
    "--steps_per_call=2",
    "--log_every=2",
    "--eval_every=4",
    "--checkpoint_every=2",
    "--keep_checkpoints=1",
    "--inspect_every=8",
    "--deterministic",
    "--quiet",
)
RESCUED = re.compile(r"The state was saved in (\S+)\. Continue with: python -m (.*)")


class Disk:
    """A file system in memory."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.pages = folder, 1
        mount = ["mount", "-t", "tmpfs", "-o", f"size={PAGE}k", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("may not mount")

    def grow(self, pages):
        self.pages += pages
        size = f"remount,size={self.pages * PAGE}k"
        subprocess.run(["mount", "-o", size, str(self.folder)], check=True)

    def close(self):
        subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rescues")
    made = lives.Nursery(folder / "log", {"TMPDIR": str(folder)})
    yield made
    made.close()


def assert_whole(folder):
    """Each file is there whole, or not at all."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        assert not any(name.startswith(".") for name in inner), path
        if path.suffix == ".json" and "checkpoints" not in inner:
            json.loads(path.read_text())
        elif path.suffix == ".keras":
            keras.saving.load_model(path)
        elif path.suffix == ".png":
            assert path.read_bytes()[-8:-4] == b"IEND"
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".jsonl":
            assert not records.read(folder, path.name).damaged
        elif path.name.startswith("step-"):
            manifests.verify(path, manifests.read(path))


def ended_clearly(end):
    """Exit code 0, 2 or 3, and one line that says why; returns the kind of end."""
    said = [line for line in end.said.splitlines() if "no checkpoint yet" not in line]
    assert end.code in (0, 2, 3), end.said
    assert len(said) == bool(end.code) or "No report: " in said[0], end.said
    assert all("No space left on device" in line for line in said), end.said
    reason = re.search(
        r"must be writable|written any more|is finished|No report", "".join(said)
    )
    return f"exit code {end.code}: {reason[0]}" if reason else "done"


@pytest.mark.slow
@pytest.mark.parametrize("pages", [1, 5])
def test_a_disk_that_grows_over_a_run(tmp_path, disk, nursery, pages):
    whole, folder = tmp_path / "whole", disk.folder / "run"
    assert nursery.live([*RUN, f"--output_dir={whole}"]).code == 0
    ends, went_on = collections.Counter(), collections.Counter()
    while True:
        end = nursery.live([*RUN, f"--output_dir={folder}", "--resume=auto"])
        kind = ended_clearly(end)
        ends[kind] += 1
        print(f"{disk.pages * PAGE} KiB: {kind}", flush=True)
        if folder.exists():
            assert_whole(folder)
        if kind == "done":
            break
        rescued = RESCUED.search(end.said)
        if rescued:
            if not went_on[kind] or ends[kind] % 8 == 0:
                words = shlex.split(rescued[2])[1:]
                assert nursery.live(words).code == 0
                # TensorBoard's files stay behind: the folder may have vanished.
                but = ("tensorboard", "events")
                lives.assert_same(pathlib.Path(rescued[1]), whole, but)
                went_on[kind] += 1
            shutil.rmtree(rescued[1])
        disk.grow(pages)
    lives.assert_same(folder, whole)
    print(dict(ends), "went on from a rescue:", dict(went_on))
