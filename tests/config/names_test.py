"""Names are refused before TensorFlow loads, and nothing else is."""

import subprocess
import sys

import keras
import pytest
import tensorflow_datasets as tfds

from mp_loop.config import errors, names, settings
from mp_loop.data import download
from mp_loop.models import applications, small_networks

REFUSED = {
    "a loss": ({"loss": "mean_squared_eror"}, "Did you mean mean_squared_error"),
    "a metric": (
        {"metric": "acuracy"},
        "--metric (acuracy) must be a Keras identifier",
    ),
    "a model": ({"model": "mobilnet"}, "Did you mean MobileNet"),
    "a depth": ({"model": "resnet21"}, "the depth must be 6n+2"),
    "a path": ({"model": "my_model.py:build"}, "Did you mean my_model:build?"),
    "a deep path": ({"model": "./a/b.py:f"}, "Did you mean a.b:f?"),
    "a module": ({"model": "no_such:f"}, "there is no module 'no_such'"),
    "a file": ({"model": "no.keras"}, "--model (no.keras): there is no such file"),
    "weights": ({"weights": "no.weights.h5"}, "there is no such file"),
    "kind of weights": ({"weights": "imagenet1k"}, "must be imagenet, or a file"),
    "a data set": ({"dataset": "cifar_10"}, "Did you mean cifar10"),
    "data without targets": (
        {"task": "regression"},
        "--dataset (fashion_mnist_mini) has no targets; --task=regression reads csv:",
    ),
    "a decoder that classifies": ({"model": "small_decoder"}, "needs --task=causal_lm"),
    "pixels that classify": ({"model": "unet"}, "needs --task=segmentation"),
    "images that are segmented": (
        {"model": "resnet20", "task": "segmentation"},
        "--model (resnet20) must be unet, a path ending in .keras, or package.module",
    ),
    "a table of masks": (
        {"model": "unet", "task": "segmentation", "dataset": "csv:x.csv"},
        "there is no file or folder 'x.csv'",
    ),
    "a classifier of tokens": (
        {"model": "cnn", "task": "causal_lm"},
        "--model (cnn) must be one of small_decoder, keras_hub:PRESET_OR_FOLDER",
    ),
    "a decoder": (
        {"model": "small_decodr", "task": "causal_lm"},
        "Did you mean small_decoder?",
    ),
    "a file of a decoder": (
        {"model": "no.keras", "task": "causal_lm"},
        "--model (no.keras): there is no such file",
    ),
    "a module of a decoder": (
        {"model": "no_such:f", "task": "causal_lm"},
        "there is no module 'no_such'",
    ),
    "a file of text": (
        {"dataset": "text:no/such", "model": "small_decoder", "task": "causal_lm"},
        "--dataset (text:no/such): there is no file or folder 'no/such'",
    ),
    "a folder of images": (
        {"dataset": "folder:README.md"},
        "--dataset (folder:README.md): there is no folder 'README.md'",
    ),
    "a file of arrays": (
        {"dataset": "npz:tests"},
        "--dataset (npz:tests): there is no file 'tests'",
    ),
    "a table": (
        {"dataset": "csv:no.csv"},
        "--dataset (csv:no.csv): there is no file or folder 'no.csv'",
    ),
    "a function that returns data": (
        {"dataset": "module:no_such:load"},
        "--dataset (module:no_such:load) must be module:package.module:function: there "
        "is no module 'no_such'",
    ),
    "a path of a function": (
        {"dataset": "module:my/data.py:load"},
        "not a path. Did you mean module:my.data:load?",
    ),
    "a module without a function": (
        {"dataset": "module:numpy"},
        "--dataset (module:numpy) must be module:package.module:function.",
    ),
    "embedded data": (
        {"dataset": "fashion_mnist_min"},
        "Did you mean fashion_mnist_mini",
    ),
}
KNOWN = {
    "defaults": {},
    "aliases": {"loss": "mse", "metric": "acc"},
    "classes": {"loss": "Huber", "metric": "SparseCategoricalAccuracy"},
    "any depth": {"model": "ResNet8"},
    "any case": {"model": "mobilenetv2", "weights": "imagenet"},
    "a function": {"model": "tests.claims.victim:model", "loss": "my>loss"},
    "a function's own loss": {"model": "tests.claims.victim:model", "loss": "own"},
    "a version": {"dataset": "mnist:3.*.*"},
    "a configuration": {"dataset": "glue/sst2"},
    "a collection": {"dataset": "huggingface:anything"},
    "text": {"model": "keras_hub:bert_tiny_en_uncased"},
    "a folder of images": {"dataset": "folder:~"},
    "a function that returns data": {"dataset": "module:tests.claims.victim:data"},
    "a language model": {
        "model": "small_decoder",
        "task": "causal_lm",
        "dataset": "text:tests",
        "metric": "perplexity",
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_names_are_refused(name):
    values, said = REFUSED[name]
    with pytest.raises(errors.UsageError) as error:
        names.check(settings.Config.of(**values))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", KNOWN)
def test_known_names_pass(name):
    names.check(settings.Config.of(**KNOWN[name]))


def test_a_folder_in_data_dir_is_a_data_set(tmp_path):
    (tmp_path / "mine").mkdir()
    names.check(settings.Config.of(dataset="mine", data_dir=str(tmp_path)))


def test_what_is_read_from_files_holds_all_that_keras_and_tfds_know():
    exported = {name.lower() for name in names._exports("applications")}
    assert set(applications.architectures()) <= exported
    assert set(keras.src.losses.ALL_OBJECTS_DICT) <= {*names._exports("losses")}
    assert set(keras.src.metrics.ALL_OBJECTS_DICT) <= {*names._exports("metrics")}
    assert set(tfds.list_builders()) <= {*names._tfds_names()}
    assert set(names.OWN_MODELS) == set(small_networks.BY_NAME)
    for name in names.EMBEDDED_DATA:
        assert download.prepared_builder(name, "").info.name == name


def test_a_command_refuses_a_name_before_tensorflow_loads(tmp_path):
    program = (
        "import sys\n"
        "from mp_loop import train\n"
        "from mp_loop.cli import app\n"
        "try:\n    app.main(train.run)\n"
        "finally:\n    assert 'tensorflow' not in sys.modules\n"
    )
    words = ["--loss=mze", f"--output_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--loss (mze) must be a Keras identifier")
    assert not (tmp_path / "run").exists()
