"""Names of models, losses, metrics and data sets, checked before TensorFlow loads.

    names.check(config)      # UsageError: --loss (mze) ... Did you mean mse?

What the installed Keras and TFDS know is read from their files, without importing
them. Where that is not possible, or a name may be a user's own, nothing is refused
here: it is looked up again when it is used.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Collection, Iterator

from mp_loop.config import choices, errors, sections, settings

OWN_MODELS = ("mlp", "cnn", "resnet9", "vit_tiny")
OWN_DECODERS = ("small_decoder",)
OWN_SEGMENTERS = ("unet",)
EMBEDDED_DATA = ("fashion_mnist_mini",)
# Kinds of data sets that are files on this machine, `kind:PATH`, or code.
LOCAL_DATA = ("text", "folder", "array_record", "npz", "csv", "jsonl", "module")
_TABLES = ("csv", "jsonl")
# Those that may hold more than one label of an example, or numbers.
_OF_COLUMNS = ("npz", *_TABLES, "module")
# What an example has of each task that not all data sets are for.
_LABELS = {"regression": "targets", "multilabel": "columns of labels"}
# Those that hold no masks.
_WITHOUT_MASKS = ("array_record", *_TABLES, "text")
PERPLEXITY = "perplexity"
# What `compile` makes of these names depends on the labels: class numbers, or of
# several labels 0 and 1.
_ALIASES = {
    "accuracy": "{}_accuracy",
    "acc": "{}_accuracy",
    "crossentropy": "{}_crossentropy",
    "ce": "{}_crossentropy",
    "mean_iou": "MeanIoU",
}
_EXAMPLES = {
    "loss": "sparse_categorical_crossentropy",
    "metric": "sparse_categorical_accuracy",
}
# They are made of others.
_NO_OPTIMIZERS = {"LossScaleOptimizer", "MultiOptimizer", "Optimizer", "OptimizerMap"}
_TEXT_MODEL = "keras_hub:"
_NO_DATA_SETS = ("builder", "config", "test")
_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)


def check(config: settings.Config) -> None:
    """Refuses names that nothing can have.

    Raises:
      UsageError: the message names what is known and close to it.
    """
    model = config.model
    if model.task == "causal_lm":
        _check_decoder(model.model)
    elif model.task == "segmentation":
        _check_segmenter(model.model)
    else:
        _check_model(model)
    if model.weights:
        _check_weights(model.weights)
    users_code = ":" in model.model
    _check_identifier("loss", model.trained_by, "losses", users_code)
    if model.measured_by != PERPLEXITY:
        _check_identifier("metric", model.measured_by, "metrics", users_code)
    _check_optimizer(config.optimizer.optimizer, users_code)
    if config.records.callbacks:
        _check_function("callbacks", config.records.callbacks)
    check_data_set(config.data)
    require_labels(config.data.dataset, model.task)


def require_labels(dataset: str, task: str) -> None:
    """Refuses data that have one class, or no label, where a task needs others.

    Raises:
      UsageError: the message names what has them.
    """
    kind, _ = local_path(dataset) or ("", "")
    if task == "segmentation" and kind in _WITHOUT_MASKS:
        raise errors.UsageError(
            f"--dataset ({dataset}) has no masks; --task=segmentation reads "
            "folder:PATH, npz:PATH, module:package.module:function and TFDS data sets."
        )
    if task in _LABELS and kind not in _OF_COLUMNS:
        raise errors.UsageError(
            f"--dataset ({dataset}) has no {_LABELS[task]}; --task={task} reads "
            "csv:PATH, jsonl:PATH, npz:PATH and module:package.module:function."
        )


def metric_identifier(name: str, task: str) -> str:
    """Returns the Keras identifier of a metric, which an alias may stand for.

    Args:
      name: as of `--metric`.
      task: as of `--task`.
    """
    labels = "binary" if task == "multilabel" else "sparse_categorical"
    return _ALIASES.get(name, name).format(labels)


def local_path(dataset: str) -> tuple[str, str] | None:
    """Returns kind and path of a data set of local files; None of any other.

    Args:
      dataset: as of `--dataset`.
    """
    kind, colon, path = dataset.partition(":")
    return (kind, os.path.expanduser(path)) if colon and kind in LOCAL_DATA else None


def is_table(dataset: str) -> bool:
    """Tells whether a data set is one of rows in files, `csv:PATH` or `jsonl:PATH`."""
    kind, _ = local_path(dataset) or ("", "")
    return kind in _TABLES


def hint(name: str, known: Collection[str]) -> str:
    """Returns " Did you mean X or Y?", or "" where nothing is close."""
    found = similar(name, known)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def similar(name: str, known: Collection[str], cutoff: float = 0.7) -> list[str]:
    """Returns which known words are close, the closest first, upper case or lower.

    Args:
      name: what was written.
      known: what there is.
      cutoff: how close, from 0 to 1, as in `difflib.get_close_matches`.
    """
    lower = {word.lower(): word for word in known}
    found = difflib.get_close_matches(name.lower(), lower, cutoff=cutoff)
    return [lower[word] for word in found]


def _check_model(model: sections.Model) -> None:
    name = model.model
    if name.endswith(".keras"):
        _require_file("model", name)
    elif ":" in name and not name.startswith(_TEXT_MODEL):
        _check_function("model", name)
    elif ":" not in name:
        architectures = {n for n in _exports("applications") if n[:1].isupper()}
        known = {*OWN_MODELS, *architectures}
        if name in OWN_DECODERS:
            raise errors.UsageError(f"--model ({name}) needs --task=causal_lm.")
        if name.lower() in OWN_SEGMENTERS:
            raise errors.UsageError(f"--model ({name}) needs --task=segmentation.")
        depth = re.fullmatch(r"resnet([1-9]\d{0,3})", name.lower())
        valid = depth and int(depth[1]) % 6 == 2 and int(depth[1]) >= 8
        if not architectures or valid or name.lower() in {n.lower() for n in known}:
            return
        if depth:
            raise errors.UsageError(
                f"--model ({name}): the depth must be 6n+2, n >= 1."
            )
        raise errors.UsageError(
            f"--model ({name}) must be one of {', '.join(OWN_MODELS)}, resnet{{6n+2}} "
            "(such as resnet20), an architecture of keras.applications (such as "
            "MobileNetV2), a path ending in .keras, keras_hub:PRESET_OR_FOLDER, or "
            f"package.module:function.{hint(name, {*known, 'resnet20'})}"
        )


def _check_decoder(name: str) -> None:
    """Refuses what cannot be a language model."""
    if name.endswith(".keras"):
        _require_file("model", name)
    elif ":" in name and not name.startswith(_TEXT_MODEL):
        _check_function("model", name)
    elif ":" not in name and name not in OWN_DECODERS:
        raise errors.UsageError(
            f"--model ({name}) must be one of {', '.join(OWN_DECODERS)}, "
            "keras_hub:PRESET_OR_FOLDER, a path ending in .keras, or "
            "package.module:function for --task=causal_lm."
            f"{hint(name, OWN_DECODERS)}"
        )


def _check_segmenter(name: str) -> None:
    """Refuses what does not name the classes of pixels."""
    if name.endswith(".keras"):
        _require_file("model", name)
    elif ":" in name and not name.startswith(_TEXT_MODEL):
        _check_function("model", name)
    elif name.lower() not in OWN_SEGMENTERS:
        raise errors.UsageError(
            f"--model ({name}) must be {', '.join(OWN_SEGMENTERS)}, a path ending in "
            ".keras, or package.module:function for --task=segmentation."
            f"{hint(name, OWN_SEGMENTERS)}"
        )


def _check_function(flag: str, name: str, before: str = "") -> None:
    """Refuses a module that is written as a path, or that is not there.

    Args:
      flag: that names it.
      name: `package.module:function`.
      before: what the flag has before it.
    """
    module, _, function = name.partition(":")
    wanted = f"{before}package.module:function"
    if module.endswith(".py") or "/" in module:
        dotted = re.sub(r"^\.+|\.py$", "", module).strip("/").replace("/", ".")
        raise errors.UsageError(
            f"--{flag} ({before}{name}) must be {wanted}, not a path. Did you mean "
            f"{before}{dotted}:{function}?"
        )
    if not function:
        raise errors.UsageError(f"--{flag} ({before}{name}) must be {wanted}.")
    package = module.partition(".")[0]
    if not package.isidentifier() or importlib.util.find_spec(package) is None:
        raise errors.UsageError(
            f"--{flag} ({before}{name}) must be {wanted}: there is no module "
            f"'{package}' here or in Python's path."
        )


def _check_weights(weights: str) -> None:
    if weights.endswith((".keras", ".weights.h5")):
        _require_file("weights", weights)
    elif weights != "imagenet":
        raise errors.UsageError(
            f"--weights ({weights}) must be imagenet, or a file that ends in .keras or "
            ".weights.h5."
        )


def _require_file(flag: str, path: str) -> None:
    if not os.path.isfile(path):
        raise errors.UsageError(f"--{flag} ({path}): there is no such file.")


def _check_identifier(flag: str, name: str, module: str, users_code: bool) -> None:
    """Refuses what is no Keras identifier; a user's module may register its own."""
    known = {*_exports(module)}
    if not known or users_code or ">" in name:
        return
    if flag == "metric":
        known |= _ALIASES.keys()
    if name not in known:
        raise errors.UsageError(
            f"--{flag} ({name}) must be a Keras identifier, such as "
            f"{_EXAMPLES[flag]}.{hint(name, known)}"
        )


def _check_optimizer(name: str, users_code: bool) -> None:
    """Refuses what is no optimizer of Keras, in any case."""
    classes = {word for word in _exports("optimizers") if word[:1].isupper()}
    known = {*choices.OPTIMIZERS, *map(str.lower, classes - _NO_OPTIMIZERS)}
    if not classes or name.lower() in known or (users_code and ">" in name):
        return
    raise errors.UsageError(
        f"--optimizer ({name}) must be one of: {', '.join(choices.OPTIMIZERS)}, or "
        f"another optimizer of Keras, such as lion.{hint(name, known)}"
    )


def check_data_set(data: sections.Data) -> None:
    """Refuses what is neither in the folder nor in TFDS, nor a local file.

    Raises:
      UsageError: the message names what is known and close to it.
    """
    local = local_path(data.dataset)
    if local is not None:
        _require_local(data.dataset, *local)
        return
    name, _, version = data.dataset.partition(":")
    name = name.partition("/")[0]
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = pathlib.Path(os.path.expanduser(data.data_dir or default))
    if version and not re.match(r"[\d*]", version):
        return  # of another collection: namespace:name
    try:
        here = {*EMBEDDED_DATA, *(path.name for path in root.iterdir())}
    except OSError:
        here = set(EMBEDDED_DATA)
    if name in here:
        return
    known = set(_tfds_names())
    if not known or name in known:
        return
    raise errors.UsageError(
        f"--dataset ({data.dataset}) is neither in '{root}' nor known to TFDS; "
        f"embedded: {', '.join(EMBEDDED_DATA)}; point --data_dir at the folder that "
        f"holds it.{hint(name, known | here)}"
    )


def _require_local(dataset: str, kind: str, path: str) -> None:
    """Refuses a path of local data that is not there."""
    if kind == "module":
        return _check_function("dataset", path, "module:")
    exists, wanted = {
        "folder": (os.path.isdir, "folder"),
        "array_record": (os.path.isdir, "folder"),
        "npz": (os.path.isfile, "file"),
    }.get(kind, (os.path.exists, "file or folder"))
    if not exists(path):
        raise errors.UsageError(
            f"--dataset ({dataset}): there is no {wanted} '{path}'."
        )


@functools.cache
def _exports(module: str) -> tuple[str, ...]:
    """The public names of a module of Keras, and the identifiers that it knows."""
    root = _package("keras")
    if root is None:
        return ()
    found: list[str] = []
    # Some versions of Keras have their public names in `api`.
    for path in (root / module, root / "api" / module, root / "src" / module):
        try:
            tree = ast.parse((path / "__init__.py").read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                found += [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.Dict):  # {"mse": MeanSquaredError, ...}
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                found += [key for key in keys if isinstance(key, str)]
    # A class is also known by its name in lower case, with underscores.
    return tuple({*found, *map(_snake_case, found)})


@functools.cache
def _tfds_names() -> tuple[str, ...]:
    """The data sets that the installed TFDS can build."""
    root = _package("tensorflow_datasets")
    return tuple(_builders(root)) if root else ()


def _builders(root: pathlib.Path) -> Iterator[str]:
    """Names of folders and of classes: more than the data sets, but all of them."""
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] in ("core", "scripts", "testing"):
            continue
        yield path.parts[-2]
        text = path.read_text(encoding="utf-8", errors="replace")
        found = map(_snake_case, _CLASS.findall(text))
        yield from (name for name in found if not name.endswith(_NO_DATA_SETS))


def _package(name: str) -> pathlib.Path | None:
    """The folder of an installed package; it is not imported."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return pathlib.Path(next(iter(places))) if places else None


def _snake_case(name: str) -> str:
    """As Keras and TFDS make an identifier of a class's name."""
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()
