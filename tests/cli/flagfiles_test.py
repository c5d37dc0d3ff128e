"""Flagfiles: what absl makes of them, and files that never end."""

import os
import pathlib

import pytest
from absl import flags

from mp_loop.cli import app, flagfiles
from mp_loop.config import errors, settings


def absl_of(words):
    return flags.FlagValues().read_flags_from_files(words)


def test_they_mean_what_absl_makes_of_them(tmp_path):
    inner = tmp_path / "inner"
    inner.write_text("  --epochs=2  \r\n// no\n\n--model=a b\n")
    outer = tmp_path / "outer"
    outer.write_text(f"# why\n--seed=3\n--flagfile={inner}\n--steps=7")
    for words in (
        [f"--flagfile={outer}", "--seed=4"],
        [f"-flagfile={inner}", "--x", "y"],
        ["--flagfile", str(inner), f"--flagfile={inner}"],
        ["--seed=1", "--", f"--flagfile={inner}"],
    ):
        assert flagfiles.expand(words) == absl_of(words)


def test_a_file_may_begin_as_windows_writes_it(tmp_path):
    path = tmp_path / "exp.flags"
    path.write_bytes(b"\xef\xbb\xbf--seed=3\n")
    assert flagfiles.expand([f"--flagfile={path}"]) == ["--seed=3"]


def pipe(path):
    os.mkfifo(path)


def chain(path):
    """A chain of 3,000 files."""
    for i in range(3000):
        (path.parent / f"{path.name}{i}").write_text(f"--flagfile={path}{i + 1}\n")
    path.write_text(f"--flagfile={path}0\n")


def doubling(path):
    """Each file includes the next one twice: 2^40 in all."""
    for i in range(40):
        name = path if not i else path.parent / f"{path.name}{i}"
        name.write_text(f"--flagfile={path}{i + 1}\n" * 2)
    (path.parent / f"{path.name}40").write_text("--seed=1\n")


def circle(path):
    """By another name each time round."""
    other = path.parent / "other"
    other.symlink_to(path)
    path.write_text(f"--flagfile={path.parent}/./other\n")


def link(target):
    return lambda path: path.symlink_to(target)


ENDLESS = {
    "a device": (link("/dev/zero"), "it is no regular file"),
    "a pipe": (pipe, "it is no regular file"),
    "the kernel's log": (link("/proc/kmsg"), "cannot be read"),
    "a process's memory": (link("/proc/self/mem"), "cannot be read"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "a large file": (
        lambda path: path.write_bytes(b"#" * (2**20 + 1)),
        "it holds more than 1048576 bytes",
    ),
    "a chain": (chain, "more than 200 files"),
    "a tree": (doubling, "more than 200 files"),
    "a circle": (circle, "must not include itself"),
    "bytes": (lambda path: path.write_bytes(b"--seed=\xff"), "must be UTF-8"),
    "a name that cannot be": (
        lambda path: path.write_text("--flagfile=a\0b\n"),
        "'a\\x00b'",
    ),
    "half a directive": (
        lambda path: path.write_text("--flagfile\n/dev/zero\n"),
        "--flagfile () must name a file",
    ),
}


@pytest.mark.parametrize("included", [False, True], ids=["named", "included"])
@pytest.mark.parametrize("name", ENDLESS)
def test_every_file_that_is_opened_is_checked(tmp_path, name, included):
    make, said = ENDLESS[name]
    path = tmp_path / "exp.flags"
    make(path)
    if included:
        outer = tmp_path / "outer.flags"
        outer.write_text(f"--seed=1\n--flagfile={path}\n")
        path = outer
    if name == "the kernel's log" and os.access("/proc/kmsg", os.R_OK):
        said = ""  # what it holds now is read, and is not flags
    with pytest.raises(errors.UsageError) as error:
        app.parse(["train", f"--flagfile={path}"])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_a_run_writes_is_read_back(tmp_path):
    config = settings.Config.of(output_dir=" a\tb", model="x#y", freeze=r"\s*'\"")
    path = pathlib.Path(tmp_path / "flags.txt")
    path.write_text(config.to_flagfile())
    assert app.parse(["train", f"--flagfile={path}"])[0] == config
