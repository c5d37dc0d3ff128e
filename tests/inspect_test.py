"""python -m mp_loop.inspect: readable tables, files, and advice that repairs."""

import json
import shlex

import keras
import pytest

from mp_loop import inspect, train
from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.run import build, records

BROKEN = "--model=experiments.advice.model:energies"


def run(*words):
    keras.utils.clear_session(free_memory=False)  # names start anew
    config, flag_values = app.parse(
        ["inspect", "--batch_size=32", *words], inspect.declare
    )
    return inspect.run(config, flag_values)


def width(lines, folder):
    return max(len(line) for line in lines if str(folder) not in line)


def test_tables_and_files_of_a_healthy_model(tmp_path, capsys):
    folder = tmp_path / "look"
    words = ("--model=mlp", "--looks=2", "--inspect_every=2")
    assert run(*words, f"--output_dir={folder}") == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert width(lines, folder) <= 100
    assert "mlp on fashion_mnist_mini, float16, step 2, loss scale 2^15" in lines
    (head,) = [line for line in lines if line.startswith("layer ")]
    assert head.split()[:4] == ["layer", "in", "max", "room"]
    (row,) = [line for line in lines if line.startswith("dense ")]
    cells = row.split()
    assert cells[1] == "f16" and 5 < float(cells[3]) < 16
    assert any(line.startswith("dense/kernel ") for line in lines)
    assert "lose less than 0.01 of every gradient." in said

    looks = records.read_numerics(folder)
    assert [line["step"] for line in looks] == [0, 2]
    assert looks[1]["layers"][1]["activations"]["headroom"] == pytest.approx(
        float(cells[3]), abs=0.05
    )
    for name in ("numerics.png", "exponents.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").iterdir())


def test_a_run_is_looked_into_where_it_is(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--model=mlp", "--steps=6", "--inspect_every=3", "--log_every=6"]
    config, flag_values = app.parse(["x", *words, f"--output_dir={folder}"])
    assert train.run(config, flag_values) == 0
    looks = records.read_numerics(folder)
    assert [line["step"] for line in looks] == [0, 3]
    assert (folder / "numerics.png").exists()
    found = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()

    words = [f"--flagfile={folder}/flags.txt", "--output_dir=", "--batch_size=128"]
    assert run(*words, f"--checkpoints={folder}/checkpoints", "--looks=1") == 0
    said = capsys.readouterr().out
    assert "mlp on fashion_mnist_mini, float16, step 6, loss scale 2^15" in said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == found


def steps(built, count):
    metrics = built.step.run(iter(built.batches(0, 0)), count)
    return metrics["grads_finite"].numpy().tolist(), metrics["loss"].numpy()


def test_a_broken_model_is_repaired_by_the_printed_flags(tmp_path, capsys):
    folder = tmp_path / "advice"
    words = [BROKEN, "--batch_size=32"]
    assert run(BROKEN, "--looks=1", "--advise", f"--output_dir={folder}") == 0
    said = capsys.readouterr().out
    assert width(said.splitlines(), folder) <= 100
    flags = shlex.split(said.split("\nFlags:\n")[1])
    found = json.loads((folder / "advice.json").read_text())
    assert found["flags"] == flags
    assert found["float32_layers"] == ["square"] and found["fewest"]
    assert found["bfloat16_is_safer"] and "bfloat16 would be safer" in said
    assert found["errors"]["float16"]["outputs"] == "inf"
    assert found["errors"]["float16 as advised"]["outputs"] < 0.01

    before = build.from_settings(app.parse(["x", *words])[0])
    assert steps(before, 8)[0] == [False] * 8
    after = build.from_settings(app.parse(["x", *words, *flags])[0])
    finite, losses = steps(after, 20)
    assert finite == [True] * 20
    assert losses[-5:].mean() < 0.7 * losses[:2].mean()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loop=keras"], r"--loop \(keras\) must be custom"),
        (["--resume"], r"--resume \(True\) must not be given"),
        (["--share=0"], r"--share \(0.0\) must be greater than 0"),
        (["--looks=0"], "looks"),
        (["--grad_bound=nan", "--advise"], r"--grad_bound \(nan\) must be greater"),
        (["--advise", "--precision=float32"], r"--precision \(float32\) needs no"),
        (["--reference=float16"], "reference"),
        (["--model=mlp", "--checkpoints=/nowhere"], r"\(/nowhere\) holds no check"),
        (["--inspect_every=-1"], r"--inspect_every \(-1\) must be at least 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(words, said):
    with pytest.raises(errors.UsageError, match=said):
        run(*words)
