"""Odd surroundings: limits, names, clocks and signals that change nothing of a run.

pytest -m slow tests/claims/surroundings_test.py
"""

import os
import pathlib
import signal
import subprocess

import pytest

from tests.support import lives

RUN = (
    "--model=tests.claims.victim:model",
    "--batch_size=400",
    "--steps=8",
    "--steps_per_call=2",
    "--log_every=2",
    "--eval_every=4",
    "--checkpoint_every=2",
    "--initial_scale=4e9",
    "--growth_interval=3",
    "--max_scale=1e10",
    "--noexplain_skips",
    "--deterministic",
)
BARE = {
    "HOME": None,
    "TMPDIR": "/no/such/folder",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}
# The name of the folder; the file system takes 255 bytes.
NAMES = {
    "blanks": " a  b",
    "quotes": "'\"$(date)\\",
    "a pattern": "[a-b]*?",
    "255 bytes": "n" * 255,
    "255 bytes of UTF-8": "ä" * 127 + "n",
    "a comment": "# a",
    "a flag": "--resume",
}
REFUSED = {
    "a blank at the end": ("a ", "must not end with a blank"),
    "a newline": ("a\n--steps=3", "must be a single line"),
    "256 bytes": ("n" * 256, "must be writable: File name too long"),
    "no UTF-8": (os.fsdecode(b"\xff\xfe"), "must be text in UTF-8"),
}
EVERYTHING = " \n'#" + "ä" * 125 + "n"


@pytest.fixture(scope="module")
def born(tmp_path_factory, request):
    """Returns a function that starts a nursery, with variables that differ."""

    def born(**environment):
        log = tmp_path_factory.mktemp("log") / "log"
        nursery = lives.Nursery(log, environment)
        request.addfinalizer(nursery.close)
        return nursery

    return born


@pytest.fixture(scope="module")
def plain(born):
    return born()


@pytest.fixture(scope="module")
def whole(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert plain.live([*RUN, f"--output_dir={folder}"]).code == 0
    return folder


def assert_same_if_killed_once(nursery, folder, whole, **surroundings):
    """The run is killed in its third line, goes on, and is the same."""
    words = [*RUN, f"--output_dir={folder}", "--resume=auto"]
    end = nursery.live(words, "in a line:3:0", **surroundings)
    assert end.code == -signal.SIGKILL, end.said
    end = nursery.live(words, **surroundings)
    assert end.code == 0, end.said
    assert "Traceback" not in end.said
    lives.assert_same(folder, whole)


def test_everything_at_once(tmp_path, born, whole):
    """A link to a folder of a long name, few files, no home, a clock of no use."""
    (tmp_path / EVERYTHING).mkdir()
    (tmp_path / "link").symlink_to(EVERYTHING)
    assert_same_if_killed_once(
        born(**BARE), tmp_path / "link", whole, limits={"NOFILE": 64}, backwards=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names(tmp_path, plain, whole, name):
    assert_same_if_killed_once(plain, tmp_path / name, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_names_that_are_refused(tmp_path, plain, name):
    name, said = REFUSED[name]
    end = plain.live([*RUN, "--quiet", f"--output_dir={tmp_path / name}"])
    assert end.code == 2 and len(end.said.splitlines()) == 1, end.said
    assert said in end.said and not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("name", BARE)
def test_the_environment(tmp_path, born, whole, name):
    assert_same_if_killed_once(born(**{name: BARE[name]}), tmp_path / "run", whole)


@pytest.mark.slow
def test_a_resumed_run_takes_what_xla_has_compiled(tmp_path, born):
    kept = tmp_path / "compiled"
    nursery = born(TF_XLA_FLAGS=f"--tf_xla_persistent_cache_directory={kept}")
    words = [*RUN, "--jit_compile=on", f"--output_dir={tmp_path / 'run'}"]
    end = nursery.live(words, "in a line:3:0")
    assert end.code == -signal.SIGKILL, end.said
    compiled = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert compiled
    end = nursery.live([*words, "--resume"])
    assert end.code == 0, end.said
    assert compiled == {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    whole = nursery.live([*words[:-1], f"--output_dir={tmp_path / 'whole'}"])
    assert whole.code == 0, whole.said
    lives.assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_clock_that_goes_backwards(tmp_path, plain, whole):
    assert_same_if_killed_once(plain, tmp_path / "run", whole, backwards=True)


@pytest.mark.slow
@pytest.mark.parametrize("most", [64, 40, 32, 24])
def test_few_open_files(tmp_path, plain, whole, most):
    """Enough of them change nothing; too few are told in one line."""
    words = [*RUN, f"--output_dir={tmp_path / 'run'}"]
    end = plain.live(words, limits={"NOFILE": most})
    if most == 64:
        assert end.code == 0, end.said
    if end.code == 0:
        lives.assert_same(tmp_path / "run", whole)
    else:
        assert end.code in (2, 3), end.said
        assert "Too many open files" in end.said.splitlines()[-1], end.said
        assert plain.live([*words, "--resume=auto"]).code == 0
        lives.assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGHUP", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    "moment", ["in training:2:0", "before a line:2:0", "before an evaluation:1:20"]
)
def test_signals_that_ask(tmp_path, plain, whole, number, moment):
    words = [*RUN, f"--output_dir={tmp_path / 'run'}", "--resume=auto"]
    end = plain.live(words, moment, signal=number)
    assert end.code == 128 + getattr(signal, number), end.said
    assert "Continue with: " in end.said.splitlines()[-1]
    assert plain.live(words).code == 0
    lives.assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    ["in training:1:0", "in a line:2:0", "before its name:1:0", "before the model:1:5"],
)
def test_stopped_and_continued(tmp_path, plain, whole, moment):
    words = [*RUN, f"--output_dir={tmp_path / 'run'}"]
    end = plain.live(words, moment, signal="SIGSTOP")
    assert end.code == 0, end.said
    lives.assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["link to a folder", "link to a link", "link inside"])
def test_symbolic_links(tmp_path, plain, whole, what):
    true, folder = tmp_path / "true", tmp_path / "run"
    true.mkdir()
    if what == "link inside":  # made between two lives
        words = [*RUN, f"--output_dir={folder}"]
        assert plain.live(words, "before a line:3:0").code == -signal.SIGKILL
        (folder / "checkpoints").rename(true / "elsewhere")
        (folder / "checkpoints").symlink_to(true / "elsewhere")
        assert plain.live([*words, "--resume"]).code == 0
        lives.assert_same(folder, whole)
        return
    folder.symlink_to(true)
    if what == "link to a link":
        (tmp_path / "again").symlink_to(folder)
        folder = tmp_path / "again"
    assert_same_if_killed_once(plain, folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dangling", "of itself"])
def test_links_to_nowhere_are_refused(tmp_path, plain, what):
    folder = tmp_path / "run"
    folder.symlink_to(tmp_path / ("nowhere" if what == "dangling" else "run"))
    end = plain.live([*RUN, "--quiet", f"--output_dir={folder}"])
    assert end.code == 2 and len(end.said.splitlines()) == 1, end.said
    assert f"--output_dir ({folder}) must be" in end.said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_read_only_mount(tmp_path, plain, whole):
    """Refused where the run would begin or go on; it goes on once it is writable."""
    true, seen = tmp_path / "true", tmp_path / "seen"
    true.mkdir()
    seen.mkdir()
    words = [*RUN, "--quiet", "--resume=auto"]

    def refused():
        bind = ["mount", "--bind", "-o", "ro", str(true), str(seen)]
        if subprocess.run(bind, capture_output=True).returncode:
            pytest.skip("may not mount")
        try:
            end = plain.live([*words, f"--output_dir={seen / 'run'}"])
        finally:
            subprocess.run(["umount", str(seen)], check=True)
        assert end.code == 2 and len(end.said.splitlines()) == 1, end.said
        assert "must be writable: Read-only file system" in end.said

    refused()
    words.append(f"--output_dir={true / 'run'}")
    assert plain.live(words, "before a line:3:0").code == -signal.SIGKILL
    refused()
    assert plain.live(words).code == 0
    lives.assert_same(true / "run", whole)


@pytest.mark.slow
def test_too_little_memory(tmp_path, plain, whole):
    """However it ends, what was saved is whole: the run goes on with more."""
    folder = tmp_path / "run"
    words = [*RUN, f"--output_dir={folder}", "--resume=auto"]
    page = os.sysconf("SC_PAGE_SIZE")
    status = pathlib.Path(f"/proc/{plain.pid}/statm").read_text()
    size = int(status.split()[0]) * page
    ends = []
    for more in (0, 50, 100, 200, 400, 800, 1600):  # MiB
        end = plain.live(words, limits={"AS": size + more * 2**20})
        ends.append(end.code)
        print(f"{more} MiB: {end.code}, {end.said.splitlines()[-1:]}")
        if end.code == 0:
            break
    assert plain.live(words).code == 0
    lives.assert_same(folder, whole)
