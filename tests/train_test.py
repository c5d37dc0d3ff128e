"""The command line, end to end, on the embedded data."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from tensorboard.plugins.hparams import plugin_data_pb2

import mp_loop
from mp_loop import train
from mp_loop.cli import app
from mp_loop.config import settings
from mp_loop.data import batching, sources
from mp_loop.models import catalog  # noqa: F401 (registers the layers of its models)
from mp_loop.report import run_page
from mp_loop.run import experiment, locking, records, run_folder
from tests.support import decoders, run_folders

ROOT = pathlib.Path(__file__).parents[1]
QUICK = ("--model=mlp", "--steps=12", "--log_every=4", "--eval_every=8")
# A run that has to be the same twice: dropout, shifts, several steps in a call.
EXACT = (
    "--model=tests.claims.victim:model",
    "--augment=flip_shift",
    "--batch_size=16",
    "--steps_per_call=3",
    "--steps=40",
    "--log_every=5",
    "--eval_every=40",
    "--checkpoint_every=10",
    "--deterministic",
)


def config(*words, **changes):
    parsed, _ = app.parse(["train", *map(str, words)])
    return parsed


def process(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mp_loop.train", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def lines(folder):
    """metrics.jsonl without what time decides."""
    found = records.read_metrics(pathlib.Path(folder))
    return [
        {
            k: v
            for k, v in line.items()
            if k not in ("examples_per_second", "input_wait")
        }
        for line in found
    ]


def weights(folder):
    model = keras.saving.load_model(pathlib.Path(folder) / "model.keras")
    return [np.asarray(w).tobytes() for w in model.get_weights()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of `QUICK` that nothing interrupted."""
    folder = tmp_path_factory.mktemp("quick") / "run"
    assert train.run(config(*QUICK, f"--output_dir={folder}"), None) == 0
    return folder


@pytest.mark.parametrize(
    ("precision", "loop"),
    [
        ("float16", "custom"),
        ("float16", "keras"),
        ("float32", "custom"),
        ("bfloat16", "keras"),
        pytest.param("bfloat16", "custom", marks=pytest.mark.slow),
        pytest.param("float32", "keras", marks=pytest.mark.slow),
    ],
)
def test_a_run_writes_what_it_promises(tmp_path, capsys, precision, loop):
    folder = tmp_path / "run"
    words = [*QUICK, f"--precision={precision}", f"--loop={loop}"]
    assert train.run(config(*words, f"--output_dir={folder}"), None) == 0
    said = capsys.readouterr().out
    assert f"mlp on fashion_mnist_mini, {precision}, {loop} loop" in said
    assert re.search(r"accuracy +0\.\d{4}", said) and "training.png" in said
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "checkpoints", "classes.json", "data.json", "environment.json",
        "evaluations.jsonl", "flags.txt", "metrics.jsonl", "model.keras",
        "predictor.keras", "report.html", "summary.json", "tensorboard",
        "test_results.json", "training.png",
    } | ({"coverage.json"} if precision != "float32" else set())  # fmt: skip
    logged = records.read_metrics(folder)
    assert [line["step"] for line in logged] == [4, 8, 12]
    promised = {
        "step", "applied_steps", "skipped_steps", "forward_overflows", "loss",
        "learning_rate", "loss_scale", "grad_norm", "examples_per_second", "accuracy",
        "input_wait",
    }  # fmt: skip
    assert promised <= set(logged[0])
    scale = 2.0**15 if precision == "float16" else 1.0
    assert {line["loss_scale"] for line in logged} == {scale}
    summary = records.read_summary(folder)
    assert (summary["steps"], summary["skipped_steps"]) == (12, 0)
    assert (summary["precision"], summary["loop"]) == (precision, loop)
    assert summary["eval_accuracy"] > 0.3  # chance is 0.1
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    model = keras.saving.load_model(folder / "model.keras")
    assert {weight.dtype for weight in model.weights} == {"float32"}


@pytest.mark.parametrize("loop", ["custom", "keras"])
def test_a_recipe_ends_early_with_its_best_averages(tmp_path, loop):
    """Averages, early stopping, a smoothed and weighted loss, images that are mixed."""
    folder = tmp_path / "run"
    words = [
        *QUICK, "--steps=46", "--eval_every=1", "--ema=0.5", "--early_stopping=1",
        "--learning_rate=0.01", "--optimizer=adamax", "--precision=bfloat16",
        "--label_smoothing=0.1", "--class_weights=Bag:2,0:0.5", f"--loop={loop}",
        "--rand_augment=9", "--mixup=0.2", "--cutmix=1",
    ]  # fmt: skip
    assert train.run(config(*words, f"--output_dir={folder}"), None) == 0
    summary, found = records.read_summary(folder), records.read_evaluations(folder)
    best = found[-2]  # the last one is no better
    assert best["eval_accuracy"] >= found[-1]["eval_accuracy"]
    assert summary["best_step"] == best["step"] == summary["steps"] - 1
    assert summary["eval_loss"] == best["eval_loss"]
    model = keras.saving.load_model(folder / "model.keras")
    source = sources.load("fashion_mnist_mini")
    evaluate = mp_loop.EvalStep(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "sparse_categorical_accuracy",
    )
    values = evaluate(batching.evaluation_batches(source, 128))
    assert values["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-6)


def test_a_metric_that_is_no_accuracy_is_not_called_one(tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*QUICK, "--metric=crossentropy", f"--output_dir={folder}"]
    assert train.run(config(*words), None) == 0
    said = capsys.readouterr().out
    assert "sparse categorical crossentropy " in said and "accuracy" not in said
    page = (folder / "report.html").read_text().split("Configuration")[0]
    # What is right and wrong has an accuracy of its own, whatever the metric.
    page = page.replace("top-1 accuracy", "", 1)
    assert "sparse categorical crossentropy" in page and "accuracy" not in page
    key = "eval_sparse_categorical_crossentropy"
    first, second = records.read_evaluations(folder)
    assert set(first) == {"step", "eval_loss", key}
    assert first[key] == pytest.approx(first["eval_loss"], rel=1e-5)
    assert records.read_summary(folder)[key] == second[key] < first[key]


def test_tensorboard_holds_scalars_settings_graph_and_profile(tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*QUICK, "--profile_steps=5:7", "--quiet", f"--output_dir={folder}"]
    assert train.run(config(*words), None) == 0
    assert capsys.readouterr().out == ""
    events = [
        event
        for path in (folder / "tensorboard").glob("events.out.tfevents.*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
    ]
    values = {value.tag: value for event in events for value in event.summary.value}
    assert {"train/loss", "train/loss_scale", "eval/accuracy"} <= set(values)
    (name,) = [tag for tag in values if tag.endswith("session_start_info")]
    content = values[name].metadata.plugin_data.content
    assert values[name].metadata.plugin_data.plugin_name == "hparams"
    told = plugin_data_pb2.HParamsPluginData.FromString(content)
    hparams = told.session_start_info.hparams
    assert hparams["precision"].string_value == "float16"
    assert hparams["batch_size"].number_value == 128
    assert "growth_interval" not in hparams  # not given
    (graph,) = [event.graph_def for event in events if event.graph_def]
    nodes = tf.compat.v1.GraphDef.FromString(graph).node
    assert any("MatMul" in node.op for node in nodes)
    (profile,) = folder.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    assert b"MatMul" in profile.read_bytes()
    # The calls end where the stretch begins and ends, and the lines stay.
    assert [line["step"] for line in records.read_metrics(folder)] == [4, 8, 12]


def test_a_profile_that_outlives_the_run_is_written(tmp_path):
    folder = tmp_path / "run"
    words = [*QUICK, "--profile_steps=11:99", f"--output_dir={folder}"]
    assert train.run(config(*words), None) == 0
    assert len(list(folder.glob("tensorboard/plugins/profile/*/*.xplane.pb"))) == 1


def test_flags_txt_replays_the_run(tmp_path, whole):
    folder = tmp_path / "run"
    again = config(f"--flagfile={whole / 'flags.txt'}", f"--output_dir={folder}")
    train.run(again, None)
    assert lines(folder) == lines(whole)
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_a_signal_saves_and_the_printed_command_resumes(tmp_path, number):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.run(config(*EXACT, f"--output_dir={whole}"), None) == 0
    running = subprocess.Popen(
        [sys.executable, "-m", "mp_loop.train", *EXACT, f"--output_dir={parts}"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    metrics = parts / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    running.send_signal(number)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 128 + number
    stop = re.search(r"Interrupted at step (\d+); a checkpoint was saved\.", said)
    assert stop and 10 <= int(stop[1]) < 40
    words = re.search(r"Continue with: python -m mp_loop.train (.*)", said)[1].split()
    assert train.run(*app.parse(["train", *words])) == 0
    assert lines(parts) == lines(whole)
    assert weights(parts) == weights(whole)


def test_a_finished_run_is_continued(tmp_path, whole):
    parts = tmp_path / "parts"
    train.run(config(*QUICK, "--steps=8", f"--output_dir={parts}"), None)
    train.run(config(*QUICK, f"--output_dir={parts}", "--resume"), None)
    assert lines(parts) == lines(whole)
    assert weights(parts) == weights(whole)
    timed = records.read_summary(parts)
    assert train.run(config(*QUICK, f"--output_dir={parts}", "--resume"), None) == 0
    assert lines(parts) == lines(whole)
    assert records.read_summary(parts) == timed and timed["train_seconds"] > 0


def test_a_run_goes_on_with_its_own_data_alone(tmp_path, capsys, monkeypatch):
    table, folder = tmp_path / "table.csv", tmp_path / "run"
    text = "x,label\n" + "".join(f"{i},{i % 2}\n" for i in range(60))
    table.write_text(text)
    words = [
        f"--dataset=csv:{table}", *QUICK, "--steps=2", "--batch_size=16", "--quiet",
    ]  # fmt: skip
    assert train.run(config(*words, f"--output_dir={folder}"), None) == 0
    again = ["--resume", f"--output_dir={folder}", "--steps=3"]
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    table.write_text(text.replace("\n7,1\n", "\n7,0\n"))
    assert "other labels to train on" in refused(capsys, monkeypatch, *again)
    assert before == {path: path.read_bytes() for path in before}
    table.write_text(text)
    assert train.run(*app.parse(["train", *again])) == 0
    assert records.read_summary(folder)["steps"] == 3


def test_a_language_model_is_adapted_resumed_and_generates(tmp_path, capsys):
    """Bit for bit, with dropout, micro-batches of which one holds the padding."""
    hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    decoders.gpt2(hub, dropout=0.1, blocks=1).save_to_preset(str(tmp_path / "gpt2"))
    (tmp_path / "a.txt").write_text("the loss scale doubles, the scale halves. " * 9)
    words = (
        "--task=causal_lm",
        f"--model=keras_hub:{tmp_path / 'gpt2'}",
        f"--dataset=text:{tmp_path / 'a.txt'}",
        "--held_out=0.2",
        "--sequence_length=12",
        "--batch_size=6",
        "--accumulate_steps=2",
        "--lora_rank=2",
        "--clip_norm=1",
        "--steps_per_call=1",
        "--log_every=3",
        "--deterministic",
    )
    words = (*words, "--steps=6", "--checkpoint_every=4", "--keep_checkpoints=9")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.run(config(*words, f"--output_dir={whole}"), None) == 0
    said = capsys.readouterr().out
    found = records.read_summary(whole)
    assert f"perplexity {found['eval_perplexity']:.4f}, loss" in said
    assert found["eval_perplexity"] == pytest.approx(np.exp(found["eval_loss"]))
    assert "perplexity" in (whole / "report.html").read_text()
    run_folders.killed_after(4, whole, parts)
    again = config(*words, "--resume", f"--output_dir={parts}")
    assert train.run(again, None) == 0
    assert weights(whole) == weights(parts)
    assert lines(whole)[-1] == lines(parts)[-1]
    model = keras.saving.load_model(whole / "model.keras")
    assert model.generate("the ", max_length=8).startswith("the ")


def test_the_folder_is_locked_until_the_last_file_is_written(tmp_path, monkeypatch):
    """A second process is refused while the first writes its model, and its report."""
    folder = tmp_path / "run"
    resumed = []

    def refused_meanwhile(true):
        def write(*arguments):
            resumed.append(process(f"--output_dir={folder}", "--resume"))
            return true(*arguments)

        return write

    for owner, name in ((run_folder.RunFolder, "write_model"), (run_page, "write")):
        monkeypatch.setattr(owner, name, refused_meanwhile(getattr(owner, name)))
    assert train.run(config(*QUICK, f"--output_dir={folder}"), None) == 0
    assert len(resumed) == 2
    for second in resumed:
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert "is being written by another process" in second.stderr
    assert (folder / "model.keras").exists() and (folder / "report.html").exists()
    locking.FolderLock(folder).release()  # was given back


def test_resume_auto_begins_and_continues(tmp_path, whole):
    parts = tmp_path / "parts"
    words = [*QUICK, f"--output_dir={parts}", "--resume=auto"]
    assert train.run(config(*words, "--steps=8"), None) == 0
    assert train.run(config(*words), None) == 0
    assert lines(parts) == lines(whole)
    assert weights(parts) == weights(whole)
    assert "--noresume" in (parts / "flags.txt").read_text()


def test_auto_is_resolved_once_and_recorded(tmp_path, monkeypatch):
    from mp_loop.hardware import machine

    folder = tmp_path / "run"
    words = [
        *QUICK,
        "--precision=auto",
        "--growth_interval=7",
        f"--output_dir={folder}",
    ]
    monkeypatch.setattr(machine, "best_precision", lambda: "bfloat16")
    assert train.run(config(*words, "--steps=8"), None) == 0
    replayed = config(f"--flagfile={folder / 'flags.txt'}")
    assert replayed.precision.precision == "bfloat16"
    assert replayed.scale.growth_interval is None
    assert records.read_summary(folder)["precision"] == "bfloat16"
    # On another machine, auto is what the run has.
    monkeypatch.setattr(machine, "best_precision", lambda: "float16")
    assert train.run(config(*words, "--resume"), None) == 0
    assert records.read_summary(folder)["precision"] == "bfloat16"
    replayed = config(f"--flagfile={folder / 'flags.txt'}")
    assert replayed.precision.precision == "bfloat16"


def test_a_run_slower_than_float32_says_so_at_its_start(tmp_path, capsys, monkeypatch):
    from mp_loop.hardware import capability, devices

    cpu = capability.Device("CPU", "CPU:0", "a CPU")
    monkeypatch.setattr(devices, "find", lambda: [cpu])
    for precision, lines_said in {"float16": 1, "bfloat16": 1, "float32": 0}.items():
        words = [*QUICK, "--steps=2", f"--output_dir={tmp_path / precision}"]
        assert train.run(config(*words, f"--precision={precision}"), None) == 0
        said = capsys.readouterr().err
        note = f"Note: {precision} takes longer than float32 on CPU:0"
        assert said.count(note) == said.count("longer") == lines_said
        assert "Warning" not in said


def test_a_run_that_diverges_says_so_once(tmp_path, capsys):
    folder = tmp_path / "run"
    words = [
        "--model=mlp",
        "--optimizer=sgd",
        "--learning_rate=1e30",
        "--diverged_after=5",
        "--log_every=5",
        "--loss_scale=static",
        "--initial_scale=1",
    ]
    assert train.run(config(*words, f"--output_dir={folder}"), None) == 1
    captured = capsys.readouterr()
    said = captured.err.split("\r")[-1].strip().splitlines()[-1]
    assert re.match(r"Training diverged: every one of the last \d+ steps", said)
    assert not (folder / "model.keras").exists()
    assert not (folder / "summary.json").exists()
    assert "Training diverged: every one" in (folder / "report.html").read_text()


def test_without_matplotlib_one_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = tmp_path / "run"
    assert train.run(config(*QUICK, f"--output_dir={folder}"), None) == 0
    said = capsys.readouterr().out
    line = "No picture: matplotlib is missing (pip install 'mp_loop[plots]')."
    assert said.splitlines().count(line) == 1
    assert not (folder / "training.png").exists()


BAD = {
    "no folder": ([], "--output_dir must name a folder"),
    "unknown data set": (["--dataset=no_such_set"], r"--dataset \(no_such_set\)"),
    "data set not here": (
        ["--dataset=mnist", "--data_dir={tmp}"],
        r"--dataset \(mnist\)",
    ),
    "unknown model": (["--model=resnet21"], r"--model \(resnet21\)"),
    "no such file": (["--model={tmp}/no.keras"], r"--model \(.*no\.keras\)"),
    "broken file": (["--model={tmp}/broken.keras"], r"--model \(.*broken\.keras\)"),
    "no such function": (["--model=os:no_such"], r"--model \(os:no_such\)"),
    "large batch": (["--batch_size=7000"], r"--batch_size \(7000\)"),
    "late profile": (
        ["--steps=5", "--profile_steps=5:6"],
        r"--profile_steps \(5:6\) must begin within the 5 steps",
    ),
    "long warm-up": (
        ["--steps=5", "--warmup_steps=5"],
        r"--warmup_steps \(5\) must be fewer than the 5 steps",
    ),
    "unknown loss": (["--loss=no_such_loss"], r"--loss \(no_such_loss\)"),
    "unknown metric": (["--metric=no_such_metric"], r"--metric \(no_such_metric\)"),
    "a loss of vectors": (
        ["--loss=categorical_crossentropy"],
        r"--loss \(categorical_crossentropy\) does not fit labels",
    ),
    "a metric of vectors": (
        ["--metric=mse"],
        r"--metric \(mse\) does not fit labels",
    ),
    "no direction": (["--metric=mean"], r"--metric \(mean\)"),
    "nothing to resume": (["--resume"], r"holds no run to resume"),
    "unwritable": (["--output_dir=/proc/run"], r"--output_dir \(/proc/run\)"),
}


def refused(capsys, monkeypatch, *words):
    """Runs the command in this process; returns its one line."""
    flag_values = app.flags.FlagValues()
    monkeypatch.setattr(app.flags, "FLAGS", flag_values)
    monkeypatch.setattr(app, "_log_to_stderr", lambda: None)
    monkeypatch.setattr(sys, "argv", ["train", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        app.main(train.run)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said, said
    return said


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path, capsys, monkeypatch, name
):
    (tmp_path / "broken.keras").write_bytes(b"not a model")
    words, said = BAD[name]
    words = [word.format(tmp=tmp_path) for word in words]
    if name not in ("no folder", "unwritable"):
        words.append(f"--output_dir={tmp_path / 'run'}")
    before = sorted(tmp_path.rglob("*"))
    assert re.search(said, refused(capsys, monkeypatch, "--model=mlp", *words))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_used_folder_and_contradictions_are_refused(
    tmp_path, capsys, monkeypatch, whole
):
    folder = tmp_path / "run"
    out = f"--output_dir={folder}"
    shutil.copytree(whole, folder)

    def content():
        return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = content()
    said = refused(capsys, monkeypatch, *QUICK, out)
    assert "already holds a run; add --resume" in said
    words = ("--precision=float32", "--optimizer=sgd", "--seed=5", "--model=cnn")
    said = refused(capsys, monkeypatch, *QUICK, out, "--resume", *words)
    assert said.startswith(
        "--model (cnn, was mlp), --precision (float32, was float16), --optimizer (sgd, "
        "was adam), --seed (5, was 0) must be as in the run to be resumed."
    )
    assert "add --change_precision" in said
    said = refused(capsys, monkeypatch, out, "--resume", "--steps=5")
    assert "--steps (5) ends at step 5, before the checkpoint" in said
    holder = locking.FolderLock(folder)
    said = refused(capsys, monkeypatch, out, "--resume", "--steps=20")
    assert "is being written by another process" in said
    holder.release()
    assert content() == before
    for index in folder.glob("checkpoints/*/state.index"):
        index.write_bytes(b"damaged")
    before = content()
    said = refused(capsys, monkeypatch, out, "--resume", "--steps=20")
    assert (
        "every checkpoint in" in said and "state.index is not what was written" in said
    )
    assert content() == before


TINY = (
    "--model=tests.claims.victim:model",
    "--batch_size=192",
    "--steps=28",
    "--log_every=4",
    "--eval_every=8",
    "--checkpoint_every=4",
)


@pytest.fixture(scope="module")
def whole_tiny(tmp_path_factory):
    """The folder of a run of `TINY` that nothing interrupted."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert train.run(config(*TINY, f"--output_dir={folder}"), None) == 0
    return folder


@contextlib.contextmanager
def at_evaluation(monkeypatch, which, action):
    """Inside, something happens in the evaluation of that number."""
    true, calls = experiment.Experiment.evaluate, []

    def evaluate(self):
        calls.append(1)
        if len(calls) == which:
            action()
        return true(self)

    with monkeypatch.context() as patch:
        patch.setattr(experiment.Experiment, "evaluate", evaluate)
        yield


def vanish(folder):
    shutil.rmtree(folder)


def fill(folder):
    with contextlib.suppress(OSError), open(folder / "hog", "wb", buffering=0) as hog:
        while True:
            hog.write(bytes(1000))


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("loss", [vanish, fill], ids=["vanished", "full disk"])
def test_a_run_whose_folder_is_lost_is_saved_elsewhere_and_goes_on_there(
    tmp_path, small_disk, capsys, monkeypatch, whole_tiny, loss
):
    whole, folder = whole_tiny, small_disk / "run"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = folder / "checkpoints" / "step-00000012"

    def lose():
        for _ in range(6000):  # it is written beside the training
            if written.exists():
                break
            time.sleep(0.01)
        loss(folder)

    with at_evaluation(monkeypatch, 2, lose):
        assert train.run(config(*TINY, f"--output_dir={folder}"), None) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--output_dir ({folder}) cannot be written any more: " in said
    if loss is fill:
        assert "No space left on device" in said
        assert {p.name for p in (folder / "checkpoints").iterdir()} >= {
            "step-00000008",
            "step-00000012",
        }
    words = re.search(r"Continue with: python -m mp_loop.train (.*)", said)[1].split()
    (rescued,) = tmp_path.glob("mp_loop_*")
    assert train.run(config(*words), None) == 0
    assert (rescued / "data.json").read_text() == (whole / "data.json").read_text()
    assert lines(rescued) == lines(whole)
    assert records.read_evaluations(rescued) == records.read_evaluations(whole)
    assert weights(rescued) == weights(whole)


def test_a_disk_that_is_full_or_read_only_from_the_start_is_refused(
    small_disk, capsys, monkeypatch
):
    out = f"--output_dir={small_disk / 'run'}"
    fill(small_disk)
    said = refused(capsys, monkeypatch, *TINY, out)
    assert re.search(r"--output_dir .* must be writable: No space left on device", said)
    (small_disk / "hog").unlink()
    shutil.rmtree(small_disk / "run", ignore_errors=True)
    assert train.run(config(*TINY, out), None) == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    capsys.readouterr()
    said = refused(capsys, monkeypatch, out, "--resume", "--steps=40")
    assert re.search(r"--output_dir .* must be writable: Read-only file system", said)


@pytest.mark.parametrize(
    "new", ["float16", pytest.param("float32", marks=pytest.mark.slow)]
)
def test_a_run_goes_on_in_another_precision_when_told_to(tmp_path, new):
    folder = tmp_path / "run"
    old = "float32" if new == "float16" else "float16"
    constants = ["--growth_interval=3"] if old == "float16" else []
    words = [*TINY, f"--output_dir={folder}"]
    train.run(config(*words, f"--precision={old}", *constants), None)
    more = [f"--output_dir={folder}", "--resume", "--steps=40"]
    given = flags.FlagValues()
    told = [*more, f"--precision={new}", "--change_precision"]
    changed, _ = app.parse(["train", *told], flag_values=given)
    assert train.run(changed, given) == 0
    summary = records.read_summary(folder)
    assert (summary["precision"], summary["steps"]) == (new, 40)
    scales = [line["loss_scale"] for line in records.read_metrics(folder)]
    assert scales[-1] == (2.0**15 if new == "float16" else 1.0)
    # From now on it is a run of the new precision.
    given = flags.FlagValues()
    again, _ = app.parse(["train", *more, "--steps=44"], flag_values=given)
    assert train.run(again, given) == 0


def test_a_diverged_run_rolls_back_and_recovers(tmp_path):
    folder = tmp_path / "run"
    wild = ["--learning_rate=1e12", "--diverged_after=5", "--rollback_factor=1e-14"]
    words = [*TINY, *wild, "--rollback=2", f"--output_dir={folder}"]
    assert train.run(config(*words), None) == 0
    lines = records.read_metrics(folder)
    assert [line["step"] for line in lines] == [*range(4, 29, 4)]
    assert {line["rollbacks"] for line in lines} == {1}
    assert lines[-1]["learning_rate"] == pytest.approx(0.01)
    assert lines[0]["loss_scale"] == 2.0**14
    assert records.read_summary(folder)["eval_accuracy"] > 0.2


def test_rollbacks_come_to_an_end(tmp_path, capsys):
    folder = tmp_path / "run"
    wild = ["--learning_rate=1e12", "--diverged_after=5", "--rollback_factor=1"]
    words = [*TINY, *wild, "--rollback=2", f"--output_dir={folder}"]
    assert train.run(config(*words), None) == 1
    assert "Training diverged" in capsys.readouterr().err


PROCESSES = {
    "unknown flag": (["--no_such_flag=1"], "no_such_flag"),
    "out of range": (["--growth_factor=1"], r"--growth_factor \(1.0\) must be"),
    "contradiction": (
        ["--loop=keras", "--min_scale=1"],
        r"--min_scale \(1.0\) cannot be expressed by Keras' LossScaleOptimizer",
    ),
    "left-over word": (["epochs=3"], r"Unexpected positional arguments \(epochs=3\)"),
    "no flagfile": (["--flagfile=/no/such.flags"], "/no/such.flags"),
    "bad model": (["--model=nonsense"], r"--model \(nonsense\)"),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_bad_input_in_a_real_process(tmp_path, name):
    words, said = PROCESSES[name]
    done = process(*words, f"--output_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and re.search(said, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_every_flagfile_of_the_experiments_is_valid():
    found = list((ROOT / "experiments").rglob("*.flags"))
    assert len(found) >= 7
    for path in found:
        assert isinstance(config(f"--flagfile={path}"), settings.Config)


@pytest.mark.slow
def test_the_default_experiment_reaches_its_accuracy(tmp_path):
    folder = tmp_path / "run"
    flagfile = ROOT / "experiments" / "exp.flags"
    done = process(f"--flagfile={flagfile}", f"--output_dir={folder}")
    assert done.returncode == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["eval_accuracy"] > 0.87  # 0.891 in the record


# Phases.
