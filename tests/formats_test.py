"""The command that shows how numbers are stored."""

import pathlib
import subprocess
import sys

import pytest

from mp_loop import formats

BAD = [
    "", "abc", "--help=1", "1/0", "2^99999", "99^2", "1e99999", "float16:0x10000",
    "float17:1", "float16:", "float16:-1", "9" * 200, "0x10", "1,5",
]  # fmt: skip


@pytest.mark.parametrize("word", BAD)
def test_other_words_are_refused_in_one_line(word, capsys):
    assert formats.main(["1", word]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"VALUE ({word}) must be a number")
    assert captured.err.count("\n") == 1


SAID = {
    "subnormal": ("1e-5", "float16 0 00000 0010101000 subnormal, 0.1641 x 2^-14"),
    "underflow": ("1e-8", "float16 0 00000 0000000000 underflows to 0"),
    "overflow": ("70000", "float16 0 11111 0000000000 overflows to inf"),
    "no infinity": ("70000", "float8_e4m3fn 0 1111 111 overflows to NaN"),
    "stored": ("0.1", "float16 0.09991455078 0.09997558594 0.1000366211 -0.024 %"),
    "not moved": ("0.1", "float16 > 3.052e-05 2^-11.7 not moved"),
    "moved": ("0.1", "float32 >= 3.725e-09 2^-24.7 0.1122040525"),
    "scales": ("1e-8", "at loss scales from 2^13 to 2^42."),
    "ranges": ("nan", "float16 1+5+10 65504 6.10352e-05 5.96046e-08 2^-10 15"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_shown(name, capsys):
    word, said = SAID[name]
    assert formats.main([word]) == 0
    out = capsys.readouterr().out
    assert said in " ".join(out.split()), out
    assert max(map(len, out.splitlines())) <= 80


def test_the_process_needs_no_tensorflow():
    root = pathlib.Path(__file__).parents[1]
    program = (
        "import sys; from mp_loop import formats; code = formats.main(['-0.1']); "
        "assert not {'tensorflow', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("-0.1\n") and "ranges" in done.stdout


def test_help_is_the_docstring(capsys):
    assert formats.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("Shows how numbers are stored")


def test_two_dashes_end_the_flags(capsys):
    assert formats.main(["--", "-4200000000", "--help"]) == 2
    assert formats.main(["0.5", "--", "-4200000000"]) == 0
    said = capsys.readouterr()
    assert "VALUE (--help)" in said.err and "-4.2" in said.out


def test_a_reader_that_has_seen_enough_is_no_error():
    words = [sys.executable, "-m", "mp_loop.formats", *map(str, range(1, 16))]
    command = subprocess.Popen(  # 20 KiB, which neither pipe nor reader hold
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=4096
    )
    command.stdout.readline()
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    assert command.wait() == 0
