"""Checkpoints: exact, whole or not there, and what happens when a disk fails."""

import contextlib
import pathlib
import random
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.precision import pairs
from mp_loop.run import checkpointing
from tests.support import steps

pytestmark = pytest.mark.usefixtures("same_bits")


def make(folder, step=None, keep=2, **arguments):
    step = step or steps.make()
    return step, checkpointing.Checkpoints(folder, step.state, keep, **arguments)


def bits(step):
    return {name: v.numpy().tobytes() for name, v in step.state.named().items()}


def learn(step, count=1):
    for seed in range(count):
        step(*steps.data(int(step.state.step) + seed))


def advance(step, steps=1):
    """Another state, without the cost of a training step."""
    step.state.step.assign_add(steps)
    for variable in [*step.state.master_weights, *step.state.slots]:
        if variable.dtype.is_floating:
            variable.assign(variable * 1.5 + 1)


def saved(folder, steps=(1, 2, 3), keep=5):
    """A step, its checkpoints, and the bits at each of them."""
    step, keeper = make(folder, keep=keep)
    seen = {}
    for at in steps:
        advance(step, at - int(step.state.step))
        keeper.save()
        seen[at] = bits(step)
    keeper.wait()
    return step, keeper, seen


STEPS = {
    "float16": {},
    "bfloat16, Adam": {"precision": "bfloat16"},
    "float32, nesterov": {
        "precision": "float32",
        "optimizer": lambda: keras.optimizers.SGD(0.1, 0.9, nesterov=True),
    },
    "general path": {"optimizer": lambda: keras.optimizers.Lion(1e-3)},
    "compiled": {"jit_compile": True},
}


def slow_but(quick, names):
    """Parameters of which only some are for every day."""
    slow = pytest.mark.slow
    return [n if n in quick else pytest.param(n, marks=slow) for n in names]


@pytest.mark.parametrize("name", slow_but(["float16", "compiled"], STEPS))
def test_what_is_saved_is_the_state_when_save_returned(tmp_path, name):
    arguments = dict(STEPS[name])
    optimizer = arguments.pop("optimizer", lambda: None)
    step, keeper = make(tmp_path, steps.make(optimizer=optimizer(), **arguments))
    learn(step, 2)
    before = bits(step)
    # The write is held up: the copy must not follow the training.
    keeper._before_publishing = lambda: learn(step, 3)
    keeper.save()
    keeper.wait()
    assert bits(step) != before
    again, other = make(tmp_path, steps.make(optimizer=optimizer(), **arguments))
    assert other.restore() == 2
    assert bits(again) == before
    assert not other.converted


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    import threading

    step, keeper = make(tmp_path)
    go_on = threading.Event()
    keeper._before_publishing = lambda: go_on.wait(60)
    learn(step)
    keeper.save()
    learn(step)  # would never come here if `save` waited
    assert not [*tmp_path.glob("step-*")]
    go_on.set()
    keeper.wait()
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]


def test_files_hold_plain_tensors_under_plain_names(tmp_path):
    step, _, _ = saved(tmp_path, steps=[2])
    reader = tf.train.load_checkpoint(str(tmp_path / "step-00000002" / "state"))
    shapes = reader.get_variable_to_shape_map()
    assert set(shapes) == set(step.state.named())
    assert reader.get_tensor("step") == 2
    kernel = reader.get_tensor("master_weights/0")
    assert kernel.tobytes() == step.state.master_weights[0].numpy().tobytes()
    # A shared variable stands there once: a bias is master and working weight.
    assert "working_weights/0" in shapes and "working_weights/1" not in shapes


def test_integers_of_the_scale_were_once_int32(tmp_path):
    step, keeper = make(tmp_path)
    learn(step, 3)
    before = bits(step)
    fields = step.state.read_loss_scale()
    assert [x.dtype for x in fields] == [tf.float32, tf.int32, tf.int32]
    step.state.loss_scale = [tf.Variable(x) for x in fields]  # as they were held
    keeper.save()
    keeper.wait()
    reader = tf.train.load_checkpoint(str(tmp_path / "step-00000003" / "state"))
    assert reader.get_variable_to_dtype_map()["loss_scale/good_steps"] == tf.int32
    again, other = make(tmp_path)
    assert other.restore() == 3
    assert bits(again) == before
    assert int(again.state.read_loss_scale().good_steps) == 3


def test_a_checkpoint_of_before_reasons_were_counted(tmp_path, monkeypatch):
    step, keeper = make(tmp_path)
    advance(step)
    everything = step.state.named()
    before = {n: v for n, v in everything.items() if n != "skip_reasons"}
    monkeypatch.setattr(step.state, "named", lambda: before)
    keeper.save()
    keeper.wait()
    again, restorer = make(tmp_path)
    assert restorer.restore() == 1 and not restorer.converted
    left = bits(again)
    assert left.pop("skip_reasons") == bytes(5 * 8)
    assert left == bits(step)


def test_no_other_int32_is_taken_for_int64(tmp_path):
    step, keeper = make(tmp_path)
    step.state.rollbacks = tf.Variable(0)
    keeper.save()
    keeper.wait()
    _, other = make(tmp_path)
    with pytest.raises(checkpointing.CheckpointError, match="rollbacks .* holds int32"):
        other.restore()


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


DAMAGE = {
    "truncated": lambda data, at: data[:at],
    "empty": lambda data, at: b"",
    "a bit flipped": lambda data, at: (
        data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
    ),
    "longer": lambda data, at: data + b"\0",
    "a block of zeros": lambda data, at: data[:at] + bytes(len(data) - at),
    "missing": None,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of three checkpoints, the bits at each, and a step of that kind."""
    folder = tmp_path_factory.mktemp("whole") / "c"
    _, _, seen = saved(folder)
    return folder, seen, steps.make()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_found_and_the_one_before_used(
    tmp_path, kind, caplog, whole
):
    whole, seen, again = whole
    names = [path.name for path in files(whole / "step-00000003")]
    assert len(names) == 3
    places = random.Random(kind)
    for round_, name in enumerate(names * 4):
        folder = tmp_path / f"run{round_}"
        shutil.copytree(whole, folder)
        path = folder / "step-00000003" / name
        if DAMAGE[kind] is None:
            path.unlink()
        else:
            data = path.read_bytes()
            path.write_bytes(DAMAGE[kind](data, places.randrange(len(data) - 1)))
        caplog.clear()
        _, keeper = make(folder, again)
        assert keeper.restore() == 2
        assert bits(again) == seen[2]
        (said,) = caplog.messages
        assert "step-00000003" in said and "step-00000002" in said
        keeper.forget_after(2)
        assert (folder / "step-00000003.damaged").is_dir()
        assert [entry.step for entry in keeper.entries()] == [1, 2]


def test_when_none_is_whole_all_are_named_and_nothing_is_assigned(tmp_path, whole):
    whole, _, again = whole
    shutil.copytree(whole, tmp_path / "c")
    for path in files(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    _, keeper = make(tmp_path / "c", again)
    before = bits(again)
    with pytest.raises(checkpointing.CheckpointError) as error:
        keeper.restore()
    assert all(f"step-0000000{i}" in str(error.value) for i in (1, 2, 3))
    assert "\n" not in str(error.value) and bits(again) == before


def test_half_of_a_checkpoint_is_none(tmp_path, whole):
    _, _, again = whole
    again.state.step.assign(1)
    _, keeper = make(tmp_path, again)
    keeper.save()
    keeper.wait()
    half = tmp_path / ".step-00000002.99"
    half.mkdir()
    (half / "state.index").write_bytes(b"half")
    _, other = make(tmp_path, again)
    assert other.restore() == 1
    other.save()
    other.wait()
    assert not half.exists()


def test_a_replacement_that_died_half_way_is_put_back(tmp_path, whole):
    whole, seen, again = whole
    shutil.copytree(whole / "step-00000001", tmp_path / "step-00000001.old")
    _, keeper = make(tmp_path, again)
    assert keeper.restore() == 1
    assert bits(again) == seen[1]


def test_without_a_checkpoint_the_run_starts_anew(tmp_path, caplog):
    again, keeper = make(tmp_path / "none")
    before = bits(again)
    assert keeper.restore() == 0
    assert bits(again) == before
    assert "no checkpoint yet" in caplog.text


OTHERS = {
    "another optimizer": (
        lambda: steps.make(optimizer=keras.optimizers.SGD(0.1)),
        r"also holds slots/\d+ \(adam",
    ),
    "another model": (
        lambda: steps.make(
            model=keras.Sequential(
                [
                    keras.Input((8, 8, 1)),
                    keras.layers.Flatten(),
                    keras.layers.Dense(3, name="head"),
                ]
            )
        ),
        r"master_weights/0 \(.*head/kernel:0\) is float32 \[64, 3\]; it holds",
    ),
    "another precision": (lambda: steps.make("bfloat16"), r"bfloat16 .*float16"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_training_is_refused_and_left_alone(name, whole):
    other, said = OTHERS[name]
    other = other()
    before = bits(other)
    with pytest.raises(checkpointing.CheckpointError, match=said) as error:
        make(whole[0], other)[1].restore()
    assert bits(other) == before and "\n" not in str(error.value)


PRECISIONS = ("float16", "bfloat16", "float32")
CHANGES = [(old, new) for old in PRECISIONS for new in PRECISIONS]
QUICK = [("float16", "float32"), ("float32", "float16")]


@pytest.mark.parametrize("change", slow_but(QUICK, CHANGES), ids="-".join)
def test_the_precision_may_change_when_asked(tmp_path, change):
    old, new = change
    first, keeper = make(tmp_path, steps.make(old))
    learn(first, 3)
    keeper.save()
    keeper.wait()
    second, keeper = make(tmp_path, steps.make(new))
    assert keeper.restore(convert=True) == 3
    second.reload()
    assert keeper.converted == (old != new)
    for name in ("master_weights", "slots"):
        one, other = (getattr(x.state, name) for x in (first, second))
        assert steps.bits(one) == steps.bits(other)
    for one, other in zip(first.model.weights, second.model.weights, strict=True):
        assert np.array_equal(one, other)  # statistics too
    for master, working in pairs.of_weights(second.model, second.twin):
        assert np.array_equal(keras.ops.cast(master, working.dtype), working)
    assert second(*steps.data(9))["grads_finite"]
    assert int(second.state.applied_steps) == 4


def test_the_newest_and_the_best_are_kept(tmp_path):
    step, keeper = make(tmp_path)
    for accuracy in (0.1, 0.7, 0.3, None, 0.7, float("nan"), 0.2):
        advance(step)
        metrics = {} if accuracy is None else {"eval_accuracy": accuracy}
        best = keeper.is_best(metrics)
        assert best == (int(step.state.step) <= 2)
        keeper.save(metrics)
    keeper.wait()
    assert [entry.step for entry in keeper.entries()] == [2, 6, 7]
    # What was best is known after a restart.
    _, other = make(tmp_path)
    assert not other.is_best({"eval_accuracy": 0.7})
    assert other.is_best({"eval_accuracy": 0.71})
    _, by_loss = make(tmp_path, best_by="eval_loss")
    assert by_loss.is_best({"eval_loss": 3.0})
    _, by_error = make(tmp_path, best_by="eval_accuracy", higher_is_better=False)
    assert by_error.is_best({"eval_accuracy": 0.01})
    _, none = make(tmp_path, best_by="none")
    assert not none.is_best({"eval_accuracy": 1.0})


def test_a_process_that_dies_while_it_removes_leaves_no_half(tmp_path, monkeypatch):
    def names():
        return sorted(path.name for path in tmp_path.iterdir())

    def half(path, **_):
        (path / "manifest.json").unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        _, keeper, _ = saved(tmp_path, (1, 2, 3), keep=2)
    assert [n for n in names() if n[0] != "."] == ["step-00000002", "step-00000003"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        keeper.forget_after(2)
    assert [n for n in names() if n[0] != "."] == ["step-00000002"]
    _, again = make(tmp_path)
    assert again.restore() == 2
    again.forget_after(2)
    assert names() == ["step-00000002"]


def test_going_back_forgets_what_came_after(tmp_path):
    step, keeper, seen = saved(tmp_path)
    step(np.full((steps.BATCH, 8, 8, 1), np.nan, np.float32), steps.data()[1])
    keeper.save()
    entry = keeper.restore_healthy()
    assert (entry.step, bits(step)) == (3, seen[3])
    keeper.forget_after(1)
    assert [entry.step for entry in keeper.entries()] == [1]
    # A start that did not help is used only if there is no other.
    keeper.restore_healthy()
    advance(step)
    keeper.save(retried=True)
    assert keeper.restore_healthy().step == 1


@contextlib.contextmanager
def small_disk(folder):
    """A file system of 256 KiB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_older_checkpoints_and_saves_elsewhere(tmp_path):
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with small_disk(disk):
        step, keeper = make(disk / "c", rescue_folder=lambda: str(elsewhere))
        (disk / "c").mkdir()
        advance(step)
        keeper.save()
        keeper.wait()
        (disk / "hog").write_bytes(bytes(200_000))
        advance(step)
        now = bits(step)
        keeper.save()
        with pytest.raises(checkpointing.SaveError, match="of step 2 cannot") as error:
            keeper.wait()
        assert "\n" not in str(error.value)
        assert error.value.rescued == str(elsewhere)
        assert [path.name for path in (disk / "c").iterdir()] == ["step-00000001"]
        again, other = make(elsewhere / "c")
        assert other.restore() == 2 and bits(again) == now
        again, other = make(disk / "c")
        assert other.restore() == 1
        # Space again: the training saves where it should.
        (disk / "hog").unlink()
        keeper.save()
        keeper.wait()
        assert [e.step for e in keeper.entries()] == [1, 2]


LOST = {
    "vanished": shutil.rmtree,
    "a file in its place": lambda path: (shutil.rmtree(path), path.write_text("")),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("rescued", [True, False], ids=["rescued", "nowhere to go"])
def test_a_lost_folder_is_told(tmp_path, name, rescued):
    folder = tmp_path / "run"
    folder.mkdir()
    rescue = tmp_path / "rescue"
    if rescued:
        rescue.mkdir()
    step, keeper = make(folder / "c", rescue_folder=lambda: str(rescue))
    keeper.save()
    keeper.wait()
    LOST[name](folder)
    keeper.save()
    with pytest.raises(checkpointing.SaveError, match="cannot be written") as error:
        keeper.wait()
    assert error.value.rescued == (str(rescue) if rescued else None)
    assert (rescue / "c" / "step-00000000").exists() == rescued
    keeper.check()  # told once


def test_counters_and_names_are_all_in_the_state():
    state = steps.make().state
    held = {id(v) for v in state.named().values()}
    assert held == {id(v) for v in state.variables}


def test_library_users_can_still_use_tf_train_checkpoint(tmp_path):
    step = steps.make()
    advance(step)
    path = tf.train.Checkpoint(state=step.state).write(str(tmp_path / "one"))
    again = mp_loop.TrainStep(
        steps.conv_model(), keras.optimizers.Adam(1e-2), steps.loss()
    )
    tf.train.Checkpoint(state=again.state).read(path).assert_consumed()
    assert bits(again) == bits(step)
    assert pathlib.Path(path + ".index").exists()


def test_a_folder_whose_name_is_a_pattern(tmp_path):
    folder = tmp_path / "[a-b]*?\\"
    folder.mkdir()
    step, keeper, seen = saved(folder / "c", (1,))
    advance(step)
    assert keeper.restore() == 1 and bits(step) == seen[1]
