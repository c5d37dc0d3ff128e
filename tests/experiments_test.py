"""The experiments' own scripts run, short ones, and find what their records say."""

import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from experiments.cifar10 import model as cifar10
from mp_loop.models import applications

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def script(name, folder, *flags):
    """Runs experiments/NAME/run.py; returns what it printed."""
    done = subprocess.run(
        [
            sys.executable,
            EXPERIMENTS / name / "run.py",
            f"--output_dir={folder}",
            *flags,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(folder):
    """Returns the cells of table.md, without its header."""
    lines = (folder / "table.md").read_text().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow  # four trainings
def test_the_three_tweaks(tmp_path):
    said = script(
        "three_tweaks", tmp_path, "--settings=scaling", "--seeds=1", "--length=0.02"
    )
    assert [row[1] for row in rows(tmp_path)] == [
        f"loss weight {weight}" for weight in ("1", "0.1", "0.01", "0.001")
    ]
    for name in ("curves.png", "gradients.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    lost = [float(x) for x in re.findall(r": (0\.\d+) of \d+ nonzero", said)]
    assert lost[0] > 0.9 and lost[1] < 0.05  # without and with the loss scale


def test_arithmetic_is_as_close_to_float64_as_keras(tmp_path):
    script("arithmetic", tmp_path, "--models=mlp", "--batches=3")
    ratios = {(row[1], row[2]): float(row[-1]) for row in rows(tmp_path)}
    assert set(ratios) == {
        (precision, measure)
        for precision in ("float16", "bfloat16")
        for measure in ("loss", "gradient", "bias gradient")
    }
    assert max(r for (_, what), r in ratios.items() if what != "loss") <= 1.02


def test_the_survey_measures_each_model_once(tmp_path):
    command = [
        *(sys.executable, "-m", "experiments.applications.survey"),
        *(f"--output_dir={tmp_path}", "--models=VGGBackbone", "--precisions=bfloat16"),
    ]
    for _ in range(2):
        subprocess.run(command, check=True, cwd=EXPERIMENTS.parent)
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["share"] == row["keras"]["share"] == 1
    assert 1e-4 < row["outputs"] < 1e-2 and 1e-4 < row["gradients"] < 6e-2
    assert not row["below"] and row["keras"]["below"]["BiasAddGrad"]
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("## bfloat16") and table.count("| VGGBackbone") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(applications.architectures()))
def test_every_architecture_trains(name, tmp_path):
    script("applications", tmp_path, f"--models={name}")
    (row,) = rows(tmp_path)
    assert float(row[3].rstrip("%")) > 90
    ours, keras = float(row[7]), float(row[8])
    assert ours <= 3 * keras  # both amplify rounding in the deepest of them


def test_the_cifar10_network_averages_the_logits_of_six_views():
    network = cifar10.network((16, 16, 3), 10)
    _, views, *layers, mean = network.layers
    assert (type(views), type(mean)) == (cifar10.Views, cifar10.MeanOfViews)
    trunk = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    wide = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    wanted = 0
    for weight, at in ((0.5, 1), (0.25, 0), (0.25, 2)):
        view = wide[:, at : at + 16, at : at + 16]
        wanted += weight * (trunk(view) + trunk(view[:, :, ::-1])) / 2
    np.testing.assert_allclose(network(images), wanted, atol=1e-5)
    np.testing.assert_array_equal(
        network(images, training=True), trunk(images, training=True)
    )


def test_the_cifar10_network_whitens_patches():
    patches = np.array(json.loads(cifar10.COVARIANCE.read_text()))
    kernel = np.reshape(cifar10.network((16, 16, 3), 10).layers[2].kernel, (12, 24))
    np.testing.assert_array_equal(kernel[:, 12:], -kernel[:, :12])
    found = kernel[:, :12].T @ patches @ kernel[:, :12]
    assert np.all(np.diag(found) <= 1) and np.diag(found)[-1] > 0.999
    np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-4)
