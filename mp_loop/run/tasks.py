"""Data and model of each task.

    source, model = tasks.make(config, strategy)

Where tokens come from the model, it is loaded before the data are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from mp_loop.config import errors, sections, settings
from mp_loop.data import recipes, sources
from mp_loop.models import (
    adapters,
    applications,
    catalog,
    causal_language,
    heads,
    language,
    trainable_layers,
)

_OF_TRAINING_IMAGES = tuple(field.name for field in dataclasses.fields(recipes.Recipe))
_OF_IMAGES = (
    *_OF_TRAINING_IMAGES,
    *("image_size", "crop_pct", "preprocessing", "weights"),
)

Parts = tuple[sources.Source, keras.Model]


def make(config: settings.Config, strategy: tf.distribute.Strategy) -> Parts:
    """Loads the data and builds the model, with adapters if they are asked for.

    Args:
      config: of the experiment.
      strategy: in whose scope the model is made.

    Raises:
      UsageError: one of them cannot be loaded, or they do not fit together.
    """
    make = _causal_lm if config.model.task == "causal_lm" else _labelled_task
    source, model = make(config, strategy)
    if config.model.lora_rank:
        head = []  # new, and so there is nothing that an adapter could adapt
        if config.model.task != "causal_lm":
            head = [trainable_layers.last(model)]
        with errors.bad_input(errors.ModelError), strategy.scope():
            adapters.enable(model, config.model.lora_rank, head)
    return source, model


def _causal_lm(config: settings.Config, strategy: tf.distribute.Strategy) -> Parts:
    named, length = config.model, config.data.sequence_length
    _refuse_flags_of_images(config, f"--task={named.task}")
    with errors.bad_input(errors.ModelError), strategy.scope():
        model = causal_language.build(
            named.model, length, named.dropout, config.training.seed
        )
    with errors.bad_input(errors.ModelError):
        tokens = causal_language.tokens(named.model, model)
    data = config.data
    with errors.bad_input(errors.DataError, flag="dataset", value=data.dataset):
        source = sources.load_texts(
            data.dataset, tokens, length, data.data_dir, data.held_out
        )
    prepare = causal_language.inputs(model)
    return dataclasses.replace(source, preprocess=prepare), model


def _labelled_task(config: settings.Config, strategy: tf.distribute.Strategy) -> Parts:
    """Of a classification, or of a regression: an output for each class or target."""
    source = _labelled(config)
    named, seed = config.model, config.training.seed
    with errors.bad_input(errors.ModelError), strategy.scope():
        if not _reads_texts(named):
            model = catalog.build(
                named.model,
                source.input_shape,
                source.num_classes,
                seed,
                named.weights,
                named.dropout,
                per_pixel=named.task == "segmentation",
            )
        else:
            model = language.build(
                _preset(named),
                config.data.sequence_length,
                source.num_classes,
                named.dropout,
                seed,
            )
    _check_end(named, model)
    return source, model


def _check_end(named: sections.Model, model: keras.Model) -> None:
    """Refuses a model whose last function does not fit the task."""
    end = heads.ends_in(model)
    if named.task == "regression" and end:
        raise errors.UsageError(
            f"--model ({named.model}) ends in softmax or sigmoid; --task=regression "
            "standardizes targets, which needs a linear layer there."
        )
    if named.task == "multilabel" and end == "softmax":
        raise errors.UsageError(
            f"--model ({named.model}) ends in softmax, which makes one class of all; "
            "--task=multilabel needs a linear layer or sigmoid there."
        )


def _labelled(config: settings.Config) -> sources.Source:
    """Loads data with labels, with the preprocessing that the model wants."""
    tokenize = _tokenizer(config)
    with errors.bad_input(errors.DataError, flag="dataset", value=config.data.dataset):
        source = sources.from_settings(config.data, tokenize, config.model.task)
    if source.is_text:
        return source
    of_pixels = config.data.preprocessing in ("tf", "torch", "caffe")
    if source.kind == "row":
        flags = (*_OF_TRAINING_IMAGES, "image_size")
        flags = (*flags, *(["preprocessing"] if of_pixels else []))
        _refuse_flags_of_images(config, f"--dataset={source.name}", flags)
    channels = source.input_shape[-1]
    if of_pixels and config.data.preprocessing != "tf" and channels != 3:
        raise errors.UsageError(
            f"--preprocessing ({config.data.preprocessing}) is for 3 channels, not the "
            f"{channels} of '{config.data.dataset}'."
        )
    preprocess = applications.preprocessing(
        config.data.preprocessing, config.model.model, config.model.weights
    )
    return dataclasses.replace(source, preprocess=preprocess)


def _tokenizer(config: settings.Config) -> sources.Tokenizer | None:
    """The tokenizer of a classifier of texts; None for images."""
    if not _reads_texts(config.model):
        return None
    _refuse_flags_of_images(config, f"--model={config.model.model}")
    with errors.bad_input(errors.ModelError):
        return language.tokenizer(_preset(config.model), config.data.sequence_length)


def _reads_texts(model: sections.Model) -> bool:
    return model.model.startswith(language.PREFIX)


def _preset(model: sections.Model) -> str:
    return model.model.removeprefix(language.PREFIX)


def _refuse_flags_of_images(
    config: settings.Config, given: str, flags: Sequence[str] = _OF_IMAGES
) -> None:
    """Names the first flag that texts, or rows of numbers, have no use for."""
    values, defaults = config.values(), settings.Config().values()
    for name in flags:
        if values[name] != defaults[name]:
            raise errors.UsageError(
                f"--{name} ({values[name]}) is for images, not for {given}."
            )
