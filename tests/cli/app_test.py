"""The shell of the commands: what is refused, in which words, how it ends."""

import subprocess
import sys

import pytest
from absl import flags

from mp_loop.cli import app
from mp_loop.config import errors, settings


def write(path, text):
    path.write_text(text)
    return f"--flagfile={path}"


def test_no_flags_give_the_defaults():
    config, flag_values = app.parse(["train"])
    assert config == settings.Config()
    assert not flag_values.help


GOOD = [
    pytest.param(["--seed=3"], {"seed": 3}, id="equals sign"),
    pytest.param(["--seed", "3"], {"seed": 3}, id="two words"),
    pytest.param(["--seed=3", "--seed=4"], {"seed": 4}, id="the last one wins"),
    pytest.param(["--deterministic"], {"deterministic": True}, id="switch on"),
    pytest.param(["--nodeterministic"], {}, id="switch off"),
    pytest.param(["--resume=auto"], {"resume": "auto"}, id="a word for a switch"),
    pytest.param(["--resume"], {"resume": True}, id="that switch alone"),
    pytest.param(["--resume=auto", "--noresume"], {}, id="that switch off"),
    pytest.param(["--min_scale=.5"], {"min_scale": 0.5}, id="a constant"),
    pytest.param(["--float32_layers=a#b"], {"float32_layers": "a#b"}, id="a hash"),
]


@pytest.mark.parametrize(("words", "values"), GOOD)
def test_flags_are_read(words, values):
    config, _ = app.parse(["train", *words])
    assert config == settings.Config.of(**values)


def test_a_flag_after_the_flagfile_overrides_it(tmp_path):
    flagfile = write(tmp_path / "exp.flags", "# why\n--seed=3\n\n--epochs=2\n")
    config, _ = app.parse(["train", flagfile, "--seed=4"])
    assert config == settings.Config.of(seed=4, epochs=2)


def test_what_a_config_writes_is_read_back_equal(tmp_path):
    config = settings.Config.of(
        output_dir="a b", deterministic=True, min_scale=2.0**-14, learning_rate=0.1
    )
    flagfile = write(tmp_path / "flags.txt", config.to_flagfile())
    assert app.parse(["train", flagfile])[0] == config


BAD = [
    pytest.param(["--sead=3"], ["sead", "Did you mean: ", "seed"], id="unknown flag"),
    pytest.param(["--seed=three"], ["--seed=three"], id="no number"),
    pytest.param(["--seed="], ["--seed="], id="empty number"),
    pytest.param(["--seed"], ["--seed"], id="no value"),
    pytest.param(["--deterministic=maybe"], ["maybe"], id="no truth value"),
    pytest.param(["--nodeterministic=1"], ["deterministic"], id="value for a switch"),
    pytest.param(["--epochs=0"], ["--epochs (0)", "at least 1"], id="out of range"),
    pytest.param(["--learning_rate=nan"], ["(nan)", "finite"], id="not finite"),
    pytest.param([f"--epochs=1{'0' * 400}"], ["int"], id="beyond float64"),
    pytest.param(["--precision=int8"], ["(int8)", "float16"], id="no such precision"),
    pytest.param(
        ["--loop=keras", "--hysteresis=2"], ["--hysteresis (2)"], id="contradiction"
    ),
    pytest.param(["--seed=1", "fast"], ["(fast)"], id="left-over word"),
    pytest.param(["fast", "--seed=1"], ["(fast"], id="word before a flag"),
    pytest.param(["--", "--seed=1"], ["(--seed=1)"], id="flags behind two dashes"),
    pytest.param(["-"], ["(-)"], id="a lone dash"),
    pytest.param(["--flagfile=no.flags"], ["no.flags"], id="missing flagfile"),
    pytest.param(["--flagfile", "no.flags"], ["no.flags"], id="missing, two words"),
    pytest.param(["--flagfile=/"], ["flagfile", "directory"], id="flagfile a folder"),
    pytest.param(["--flagfile="], ["--flagfile ()"], id="flagfile not named"),
    pytest.param(["--flagfile"], ["flagfile"], id="flagfile without a value"),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_bad_flags(words, said, capsys):
    with pytest.raises(errors.UsageError) as error:
        app.parse(["train", *words])
    message = str(error.value)
    assert all(part in message for part in said), message
    assert message and "\n" not in message
    assert capsys.readouterr().err == ""


BAD_FILES = [
    pytest.param(b"seed=3\n", "(seed=3)", id="a flag without dashes"),
    pytest.param(b"--seed=3\nfast\n--epochs=2\n", "(fast", id="a word"),
    pytest.param(b"--seed=3  # why\n", "--seed=3 # why", id="comment after a number"),
    pytest.param(b"--model=cnn  # why\n", "--model (cnn  # why)", id="after a string"),
    pytest.param(b"--seed=\xff\n", "UTF-8", id="bytes"),
    pytest.param(b"--colour=1\n", "colour", id="unknown flag"),
    pytest.param(b"--flagfile=%s\n", "include itself", id="a circle"),
]


@pytest.mark.parametrize(("text", "said"), BAD_FILES)
def test_bad_flagfiles(tmp_path, text, said, capsys):
    path = tmp_path / "exp.flags"
    path.write_bytes(text.replace(b"%s", str(path).encode()))
    with pytest.raises(errors.UsageError) as error:
        app.parse(["train", f"--flagfile={path}"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""


def declare(flag_values):
    flags.DEFINE_integer("repeats", 3, "Runs.", lower_bound=1, flag_values=flag_values)


def test_a_command_has_flags_of_its_own():
    config, flag_values = app.parse(["x", "--repeats=5", "--seed=1"], declare)
    assert (config.training.seed, flag_values.repeats) == (1, 5)
    with pytest.raises(errors.UsageError, match="repeats=0"):
        app.parse(["x", "--repeats=0"], declare)
    with pytest.raises(errors.UsageError, match="repeats"):
        app.parse(["x", "--repeats=1"])


def test_bad_input_turns_the_named_kinds_into_usage_errors():
    with pytest.raises(errors.UsageError) as error, errors.bad_input(KeyError):
        raise KeyError("two\nlines")
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, KeyError)
    with pytest.raises(LookupError), errors.bad_input(KeyError):
        raise LookupError("not named")
    with pytest.raises(errors.UsageError, match="^OSError$"):  # noqa: SIM117
        with errors.bad_input(OSError):
            raise OSError


class TheirError(errors.UsageError):
    pass


ENDS = [
    pytest.param(None, 0, "", id="done"),
    pytest.param(0, 0, "", id="zero"),
    pytest.param(1, 1, "", id="failed"),
    pytest.param(errors.UsageError("a\nb"), 2, "a b\n", id="usage"),
    pytest.param(errors.RecordError("used"), 2, "used\n", id="run folder"),
    pytest.param(TheirError("theirs"), 2, "theirs\n", id="a kind of bad input"),
    pytest.param(KeyboardInterrupt(), 130, "Interrupted.\n", id="interrupted"),
]


@pytest.fixture
def fresh_flags(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(app, "_log_to_stderr", lambda: None)


@pytest.mark.parametrize(("outcome", "code", "said"), ENDS)
def test_how_a_command_ends(fresh_flags, monkeypatch, capsys, outcome, code, said):
    def run(config, flag_values):
        assert (config.training.seed, flag_values.seed) == (3, 3)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(sys, "argv", ["train", "--seed=3"])
    with pytest.raises(SystemExit) as end:
        app.main(run)
    assert end.value.code == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(fresh_flags, monkeypatch):
    def run(config, flag_values):
        raise ValueError("a bug")

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(ValueError, match="a bug"):
        app.main(run)


PROGRAM = """'''What it does.'''
import sys
from absl import flags, logging
from mp_loop.cli import app
assert "tensorflow" not in sys.modules

def declare(flag_values):
    flags.DEFINE_integer("repeats", 3, "How often.", flag_values=flag_values)

def run(config, flag_values):
    import os
    logging.error("seed %d", config.training.seed)
    print(flag_values.repeats, os.environ["TF_CPP_MIN_LOG_LEVEL"])
    return 7

app.main(run, declare)
"""

PROCESSES = [
    pytest.param(["--seed=4", "--repeats=2"], 7, "2 2\n", "seed 4\n", id="runs"),
    pytest.param(
        ["--epochs=0"], 2, "", "--epochs (0) must be at least 1.\n", id="bad flag"
    ),
]


def process(words):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True
    )


@pytest.mark.parametrize(("words", "code", "out", "err"), PROCESSES)
def test_a_real_process(monkeypatch, words, code, out, err):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    done = process(words)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_help_shows_our_flags_only():
    done = process(["--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("What it does.")
    assert "  --repeats=3\n      How often.\n" in done.stdout
    assert "  --learning_rate=0.001\n      Peak learning rate.\n" in done.stdout
    assert "  --growth_interval=\n" in done.stdout
    assert "  --[no]resume\n" in done.stdout
    assert done.stdout.count("Show this.") == 1
    assert "--verbosity" not in done.stdout
