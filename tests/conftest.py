"""The kernels that the commands take, and two replicas: two logical CPUs.

On a GPU: TF32 is off, so that float32 can be compared to the last digits; modules that
compare two computations bit by bit use `same_bits`; tests marked `gpu` run.
"""

import contextlib
import functools
import gc
import os

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

tf.config.experimental.enable_tensor_float_32_execution(False)

# A slow machine fails no test.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser):
    parser.addoption(
        "--gpu_tests_on",
        metavar="DEVICE",
        help="Run the tests marked gpu on this device, CPU:1 for example, which shows "
        "what strays to CPU:0. What needs a card is then not asserted.",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("gpu_tests_on") or tf.config.list_physical_devices("GPU"):
        return
    reason = "TensorFlow sees no GPU (--gpu_tests_on=CPU:1 runs it on the processor)"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def gpu_device(request):
    """The device of a test marked gpu, such as "GPU:0"."""
    return request.config.getoption("gpu_tests_on") or "GPU:0"


@pytest.fixture(scope="session")
def on_gpu(gpu_device):
    """Whether a test marked gpu runs on one."""
    return gpu_device.startswith("GPU")


@pytest.fixture
def where_it_runs(gpu_device, on_gpu):
    """A GPU is where everything goes by itself; a processor has to be named."""
    with contextlib.nullcontext() if on_gpu else tf.device(gpu_device):
        yield


@pytest.fixture(autouse=True)
def exact_float32():
    """A test that turns TF32 on turns it on for itself alone."""
    yield
    tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture(autouse=True)
def kernels_for_one_test():
    """A run of Keras' loop in float16 chooses kernels for itself, not for processes
    that later tests start."""
    name = "TF_ENABLE_ONEDNN_OPTS"
    before = os.environ.get(name)
    yield
    os.environ.pop(name, None)
    if before is not None:
        os.environ[name] = before


@pytest.fixture(scope="module")
def same_bits(request):
    """For modules that compare bits: a GPU adds up in one order, as processors do."""
    asked = request.config.getoption("gpu_tests_on")
    if not asked and not tf.config.list_physical_devices("GPU"):
        yield
        return
    tf.random.set_seed(0)  # an operation without a seed is refused
    tf.config.experimental.enable_op_determinism()
    yield
    tf_config.disable_op_determinism()


@pytest.fixture
def compiled_by_keras(same_bits):
    """Inside a module of `same_bits`: Keras does not compile deterministic kernels."""
    before = tf_config.is_op_determinism_enabled()
    if before:
        tf_config.disable_op_determinism()
    yield
    if before:
        tf.config.experimental.enable_op_determinism()


def pytest_collection_finish():
    """Not to look through what is imported, and through all that is traced."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def deterministic_for_one_test():
    """What --deterministic sets in this process, the next test begins without."""
    before = tf_config.is_op_determinism_enabled()
    yield
    if tf_config.is_op_determinism_enabled() and not before:
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
