"""The kernels that the commands take, and two replicas: two logical CPUs."""

import functools
import gc

import hypothesis
import pytest

from mp_loop.hardware import startup

startup.prefer_onednn()
gc.disable()  # until all tests are imported

import tensorflow as tf  # noqa: E402
from matplotlib import layout_engine  # noqa: E402
from tensorflow.python.framework import config as tf_config  # noqa: E402

from mp_loop.config import names, sections  # noqa: E402
from mp_loop.data import sources  # noqa: E402

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

# A slow machine fails no test.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_collection_finish():
    """Not to look through what is imported, and through all that is traced."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def deterministic_for_one_test():
    """What --deterministic sets in this process, the next test begins without."""
    yield
    if tf_config.is_op_determinism_enabled():
        tf_config.disable_op_determinism()


@pytest.fixture(autouse=True, scope="session")
def laid_out_once():
    """A picture is drawn without the search for room, which draws it twice before.

    Real processes, of which there are many, search.
    """
    with pytest.MonkeyPatch.context() as patch:
        engine = layout_engine.ConstrainedLayoutEngine
        patch.setattr(engine, "execute", lambda *_: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def decoded_once():
    """The 7,000 images in the package are decoded once, not for every run."""
    decode = sources._of_tfds

    @functools.cache
    def embedded(name):
        found = decode(sections.Data(dataset=name), None)
        for split in (found.train, found.test):
            split.inputs.flags.writeable = split.labels.flags.writeable = False
        return found

    def of_tfds(data, tokenize):
        as_they_are = tokenize is None and not data.data_dir and not data.image_size
        if data.dataset in names.EMBEDDED_DATA and as_they_are:
            return embedded(data.dataset)
        return decode(data, tokenize)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_of_tfds", of_tfds)
        yield
