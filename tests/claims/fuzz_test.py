"""Hostile input of every kind: one line, exit code 2, nothing written, no hang."""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import zipfile

import keras
import pytest
from absl import flags

from mp_loop import train
from mp_loop.cli import app
from mp_loop.config import settings
from mp_loop.data import sources
from mp_loop.run import run_folder
from tests.claims import victim

NASTY = [
    "", " ", "0", "-1", "-0.0", "1.5", "nan", "inf", "-inf", "1e400", "1e39", "1e-60",
    "9" * 30, "9" * 5000, "0x10", "1_000", "\uff11\uff12", "None", "True", "[]", "{}",
    "a\nb", "a\rb", "a\0b", "\ud800", "\U0001f4a5", "%s%n", "$(id)", "`id`", ";id",
    "../../../x", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "~", "~nobody/x",
    "x" * 300, "x" * 5000, ".keras", "/.keras", "os:system", "os:", ":", "a:b:c",
    "mp_loop:__doc__", "antigravity:x", "this:", "..:x", "(", "(a+)+$", "--seed=1",
    "-", "--", "@file", "http://127.0.0.1:1/x", "gs://x/y", "s3://x", "file:///etc",
]  # fmt: skip
FIELDS = list(settings.FIELDS)
SECONDS = 60  # until a hang is called one


class Hung(BaseException):
    pass


@pytest.fixture(autouse=True)
def no_hang():
    def hung(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, hung)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def attempt(tmp_path, monkeypatch, capfd):
    """Runs the command in this process, up to training; returns code and line."""
    # What all share is read once: the time goes to what is fuzzed.
    monkeypatch.setattr(sources, "load", functools.cache(sources.load))
    monkeypatch.setattr(app, "_log_to_stderr", lambda: None)

    class Accepted(Exception):
        pass

    def begin(*_, **__):
        raise Accepted

    monkeypatch.setattr(run_folder.RunFolder, "create", begin)
    monkeypatch.setattr(run_folder.RunFolder, "reopen", begin)
    monkeypatch.chdir(tmp_path)

    def attempt(*words):
        monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
        monkeypatch.setattr(sys, "argv", ["train", *words])
        capfd.readouterr()
        before = content(tmp_path)
        signal.alarm(SECONDS)
        try:
            app.main(train.run)
        except Accepted:
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            signal.alarm(0)
        out, err = capfd.readouterr()
        assert content(tmp_path) == before, words
        assert code in (0, 2), (code, err)
        if code == 2:
            # TensorFlow's own log: a command silences it before TensorFlow is loaded.
            said = [x for x in err.splitlines() if not re.match("[IW]0000 ", x)]
            assert len(said) == 1 and said[0].strip(), (words, err)
            assert len(said[0]) < 12_000 and not out
            err = said[0]
        return code, err

    return attempt


def content(folder):
    return {
        str(path): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


SMALL = ("--model=tests.claims.victim:model", "--batch_size=500", "--output_dir=run")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_flags(attempt, name):
    refused = 0
    for value in NASTY:
        if "\0" in value:
            continue  # cannot reach a program
        code, said = attempt(*SMALL, f"--{name}={value}")
        refused += code == 2
        if value in ("nan", "inf", "1e400") and code == 2:
            assert name in said
    anything = ("resume", "float32_layers", "output_dir", "data_dir")
    assert refused > 3 or name in anything


def test_flags_until_tensorflow(attempt, monkeypatch):
    """Every flag and value, as far as is told before anything is loaded."""
    monkeypatch.setattr(train, "_run", lambda *_: 0)
    for number, (name, value) in enumerate(itertools.product(FIELDS, NASTY)):
        # Written in both ways by turns; an odd number of values: in both for each.
        words = [f"--{name}={value}"] if number % 2 else [f"--{name}", value]
        attempt(*SMALL, *words)


def mutated(data, chance):
    """Bytes with one thing wrong."""
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.randrange(1, 40))
    kind = chance.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + chance.randbytes(end - at) + data[end:]
    if kind == 3:
        return data[:at] + data[at:end] * 3 + data[end:]
    return data[:at] + bytes(end - at) + data[end:]


ODD = [None, True, -1, 0, 10**6, 1e308, "", "x", "../x", [], {}, [[]], {"a": 1}]


def changed_json(value, chance):
    """Parsed JSON with one leaf or branch replaced."""
    places = []

    def walk(inner):
        pairs = inner.items() if isinstance(inner, dict) else enumerate(inner)
        for key, below in pairs:
            places.append((inner, key))
            if isinstance(below, (dict, list)):
                walk(below)

    walk(value)
    inner, key = chance.choice(places)
    if chance.random() < 0.2 and isinstance(inner, dict):
        del inner[key]
    else:
        inner[key] = chance.choice(ODD)
    return value


def many(few, more):
    """So many seeds in CI; the others are slow."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(few, more)]
    return [*range(few), *slow]


@pytest.mark.parametrize("seed", many(1, 10))
def test_flagfiles(attempt, tmp_path, seed):
    chance = random.Random(seed)
    valid = settings.Config.of(output_dir="run").to_flagfile().encode()
    path = tmp_path / "exp.flags"
    for _ in range(100):
        path.write_bytes(mutated(valid, chance))
        with pytest.MonkeyPatch.context() as patch:
            # Parsing is what is fuzzed here.
            patch.setattr(train, "_run", lambda *_: 0)
            attempt(f"--flagfile={path}")
    for device in ("/dev/zero", "/dev/urandom"):
        assert attempt(f"--flagfile={device}")[0] == 2
        assert attempt("--flagfile", device)[0] == 2


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    victim.model((28, 28, 1), 10).save(path)
    return path


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)


@pytest.mark.parametrize("seed", many(1, 20))
def test_keras_files(attempt, tmp_path, keras_file, seed):
    chance = random.Random(seed)
    path = tmp_path / "model.keras"
    words = ["--model=model.keras", "--batch_size=500", "--output_dir=run"]
    refused = 0
    for turn in range(12):
        parts = members(keras_file)
        if turn % 3 == 0:
            path.write_bytes(mutated(keras_file.read_bytes(), chance))
        elif turn % 3 == 1:
            name = chance.choice([*parts])
            write(path, {**parts, name: mutated(parts[name], chance)})
        else:
            parsed = changed_json(json.loads(parts["config.json"]), chance)
            write(path, {**parts, "config.json": json.dumps(parsed)})
        refused += attempt(*words)[0] == 2
    assert refused > 4


CODE = {
    "lambda": lambda: keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
            keras.layers.Lambda(lambda x: [x, open("owned", "w").close()][0]),
        ]
    ),
}
CONFIGS = {
    "a function of os": ("os", "system", "touch owned"),
    "builtins": ("builtins", "eval", "open('owned','w')"),
    "a lambda": ("builtins", "__lambda__", {"value": "x"}),
}


@pytest.mark.parametrize("name", [*CODE, *CONFIGS])
def test_a_keras_file_runs_no_code(attempt, tmp_path, keras_file, name):
    path = tmp_path / "model.keras"
    if name in CODE:
        CODE[name]().save(path)
        (tmp_path / "owned").unlink(missing_ok=True)
    else:
        parts = members(keras_file)
        parsed = json.loads(parts["config.json"])
        keys = ("module", "class_name", "config")
        parsed["config"]["layers"].insert(
            1, dict(zip(keys, CONFIGS[name], strict=True))
        )
        write(path, {**parts, "config.json": json.dumps(parsed)})
    words = ["--model=model.keras", "--batch_size=500", "--output_dir=run"]
    assert attempt(*words)[0] == 2
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("seed", many(1, 10))
def test_data_folders(attempt, tmp_path, seed):
    chance = random.Random(seed)
    source = (
        pathlib.Path(sources.__file__).parents[1] / "datasets/fashion_mnist_mini/1.0.0"
    )
    whole = {path.name: path.read_bytes() for path in source.iterdir()}
    refused = 0
    for turn in range(6):
        folder = tmp_path / f"{turn}" / "mini" / "1.0.0"
        folder.mkdir(parents=True)
        name = chance.choice(sorted(name for name in whole if name != "LICENSE"))
        for other, text in whole.items():
            (folder / other).write_bytes(text)
        if name.endswith(".json") and turn % 2:
            text = json.dumps(changed_json(json.loads(whole[name]), chance)).encode()
        else:
            text = mutated(whole[name], chance)
        (folder / name).write_bytes(text)
        words = ["--dataset=mini", f"--data_dir={tmp_path / str(turn)}"]
        refused += attempt(*SMALL, *words)[0] == 2
    assert refused > 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["--steps=2", "--checkpoint_every=1", "--log_every=1"]
    config, _ = app.parse(["train", *SMALL, *words, f"--output_dir={folder}"])
    assert train.run(config, None) == 0
    return folder


def resealed(path, chance):
    """A manifest that a liar has changed and sealed again."""
    text, _, _ = path.read_bytes().split(b"\n")
    text = json.dumps(changed_json(json.loads(text), chance)).encode()
    seal = hashlib.sha256(text).hexdigest().encode()
    path.write_bytes(text + b"\n" + seal + b"\n")


@pytest.mark.parametrize("seed", many(1, 20))
def test_run_folders(attempt, tmp_path, finished, seed):
    chance = random.Random(seed)
    names = sorted(
        str(path.relative_to(finished))
        for path in finished.rglob("*")
        if path.is_file() and path.suffix not in (".png", ".keras")
    )
    for turn in range(12):
        folder = tmp_path / f"run{turn}"
        shutil.copytree(finished, folder)
        if turn % 3 == 0:
            for path in folder.rglob("manifest.json"):
                resealed(path, chance)
        else:
            path = folder / chance.choice(names)
            path.write_bytes(mutated(path.read_bytes() or b"x", chance))
        attempt(f"--output_dir={folder}", "--resume")


def test_a_link_to_a_device_is_not_followed(attempt, tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoints/*/state.index"):
        path.unlink()
        os.symlink("/dev/zero", path)
    assert attempt(f"--output_dir={folder}", "--resume")[0] == 2
