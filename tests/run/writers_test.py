"""What writes and what writes nothing take the same calls."""

import inspect

import pytest

from mp_loop.run import checkpointing, run_folder, watching, writers

PAIRS = {
    "folder": (writers.Writer, run_folder.RunFolder, writers.NullWriter),
    "checkpoints": (
        writers.CheckpointStore,
        checkpointing.Checkpoints,
        writers.NullCheckpoints,
    ),
    "watcher": (watching.Watcher, watching.ProbeWatcher, watching.NullWatcher),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_protocol_its_class_and_its_null_class_have_the_same_methods(name):
    protocol, *classes = PAIRS[name]
    methods = {
        method: inspect.signature(function)
        for method, function in vars(protocol).items()
        if inspect.isfunction(function) and not method.startswith("_")
    }
    assert methods
    for cls in classes:
        for method, signature in methods.items():
            other = inspect.signature(getattr(cls, method))
            assert [*other.parameters] == [*signature.parameters], (cls, method)


def test_the_null_classes_do_nothing():
    checkpoints = writers.NullCheckpoints()
    assert not checkpoints.is_best({"eval_accuracy": 1.0})
    assert checkpoints.restore_healthy() is None
    folder = writers.NullWriter()
    assert (folder.failure, folder.rescued) == ("", False)
    assert folder.rescue("why") is None
    assert watching.NullWatcher().report(3) == {}
