"""Transformers of keras_hub, fine-tuned to classify text.

    encode = language.tokenizer("bert_tiny_en_uncased", sequence_length=64)
    model = language.build("bert_tiny_en_uncased", sequence_length=64, num_classes=2)
    logits = model(encode(["a sentence", "and another"]))

A preset is what `keras_hub.models.Backbone.from_preset` takes: a name that it knows, a
handle such as `hf://user/model`, or a folder with the files of keras_hub or of Hugging
Face. Inputs are token ids, [batch, sequence_length]; outputs are float32 logits,
[batch, num_classes], without softmax.

keras_hub is optional (`pip install 'mp_loop[text]'`), and imported only when needed.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import types
from collections.abc import Sequence

import keras
import numpy as np

from mp_loop.config import errors
from mp_loop.data import download

PREFIX = "keras_hub:"
"""What `--model` begins with, before the preset."""

# Where keras_hub's presets are: without an answer from this host there is no network.
_PROBE_ADDRESSES = {"hf": ("huggingface.co", 443)}
_PROBE_ADDRESS = ("www.kaggle.com", 443)
_INPUTS = ("token_ids", "segment_ids", "padding_mask")


class Tokenizer:
    """Makes token ids of sentences, as a preset does it.

    Attributes:
      preprocessor: keras_hub's, which adds the special tokens.
      sequence_length: of every row: longer sentences are cut, shorter ones are padded.
    """

    def __init__(
        self,
        preprocessor: keras.layers.Layer,
        sequence_length: int,
    ):
        """Takes a `keras_hub.models.TextClassifierPreprocessor`."""
        self.preprocessor = preprocessor
        self.sequence_length = sequence_length

    def __call__(self, sentences: Sequence[bytes | str]) -> np.ndarray:
        """Returns int32 [n, sequence_length] of n sentences, a list or an array."""
        texts = [
            text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            for text in sentences
        ]
        if not texts:
            return np.zeros((0, self.sequence_length), np.int32)
        return np.asarray(self.preprocessor(texts)["token_ids"], np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """Returns the text of a row of tokens, int32 [length], as the model saw it.

        It is cut where the tokens are, and of a preset that lowers letters in lower
        case. Tokens that stand for no text (start, end, padding) are left out. Of a
        tokenizer that cannot go back it is "".
        """
        own = self.preprocessor.tokenizer
        kept = tokens[~np.isin(tokens, own.special_token_ids)]
        try:
            return str(own.detokenize(kept))
        except NotImplementedError:
            return ""

    def as_input(self) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns texts as the input of a model, and the tokens that it makes of them.

        Such a model can be exported, but not be loaded again by Keras.
        """
        texts = keras.Input((), dtype="string", name="text")
        return texts, self.preprocessor(texts)["token_ids"]

    def save(self, folder: str) -> None:
        """Writes a folder for `saved_tokenizer`."""
        self.preprocessor.save_to_preset(folder)


def tokenizer(preset: str, sequence_length: int) -> Tokenizer:
    """Returns what makes token ids from sentences for a preset.

    Args:
      preset: see the module's docstring.
      sequence_length: of every row; at least 3, for a start, a word and an end.

    Raises:
      ModelError: keras_hub is missing, or has no such preset for text.
    """
    _check_length(sequence_length)
    preprocessor = from_preset(
        "TextClassifierPreprocessor", preset, sequence_length=sequence_length
    )
    return Tokenizer(preprocessor, sequence_length)


def saved_tokenizer(folder: str) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote; the preset may be gone.

    Raises:
      ModelError: keras_hub is missing, or the folder holds no tokenizer.
    """
    keras_hub(f"{PREFIX}{folder}")  # Keras finds its classes once it is imported
    try:
        # keras_hub itself would ask for the configuration of a model as well.
        text = pathlib.Path(folder, "preprocessor.json").read_text(encoding="utf-8")
        preprocessor = keras.saving.deserialize_keras_object(json.loads(text))
        assets = pathlib.Path(folder, "assets", "tokenizer")
        preprocessor.tokenizer.load_assets(str(assets))
    except Exception as error:  # Files or configuration can raise any type.
        raise errors.ModelError(
            errors.because(f"'{folder}' cannot be read as a tokenizer", error)
        ) from error
    return Tokenizer(preprocessor, preprocessor.sequence_length)


def build(
    preset: str,
    sequence_length: int,
    num_classes: int,
    dropout: float = 0.1,
    seed: int = 0,
) -> keras.Model:
    """Builds a float32 classifier: a pretrained backbone, a mean, and a new head.

    The mean is over the positions that are not padding. Layers of the backbone that do
    not lead to that output (BERT's pooler) are left out.

    Args:
      preset: see the module's docstring.
      sequence_length: tokens in each row; at least 3, and at most the number of the
        backbone's positions.
      num_classes: the length of the logits; at least 1.
      dropout: rate before the last layer, in [0, 1).
      seed: of the last layer's weights and of dropout. `keras.utils.set_random_seed`
        is called with it, as in `catalog.build`.

    Returns:
      A functional model with one input, `token_ids`, int32 [batch,
      sequence_length], and one output, `logits`, [batch, num_classes].

    Raises:
      ModelError: an argument is out of range, keras_hub is missing, or the preset is
        not a model from tokens to one vector for each token.
    """
    _check_length(sequence_length)
    if num_classes < 1:
        raise errors.ModelError(f"`num_classes` ({num_classes}) must be at least 1.")
    if not 0 <= dropout < 1:
        raise errors.ModelError(f"`dropout` ({dropout}) must be in [0, 1).")
    if not 0 <= seed < 2**32:
        raise errors.ModelError(f"`seed` ({seed}) must be in [0, 2**32).")
    name = f"{PREFIX}{preset}"
    keras.utils.set_random_seed(seed)  # of the backbone's dropout
    backbone = from_preset("Backbone", preset, dtype="float32")
    _sequence(name, backbone)
    longest = getattr(backbone, "max_sequence_length", None)
    if longest is not None and sequence_length > longest:
        raise errors.ModelError(
            f"`model` ('{name}'): `sequence_length` ({sequence_length}) must be at "
            f"most {longest}, the number of its positions."
        )
    padding = from_preset("Tokenizer", preset).pad_token_id
    keras.utils.set_random_seed(seed)  # whatever the backbone drew
    return with_head(backbone, sequence_length, num_classes, dropout, padding)


def with_head(
    backbone: keras.Model,
    sequence_length: int,
    num_classes: int,
    dropout: float = 0.1,
    padding: int = 0,
) -> keras.Model:
    """Adds a linear classifier on the mean of a backbone's vectors.

    Args:
      backbone: from token ids (and segments, and a mask) to one vector for each token.
      sequence_length: tokens in each row.
      num_classes: the length of the logits.
      dropout: dropout rate before the classifier.
      padding: the token id of padding.

    Returns:
      As `build`.
    """
    sequence = _sequence(backbone.name, backbone)
    token_ids = keras.Input((sequence_length,), dtype="int32", name="token_ids")
    mask = keras.ops.cast(keras.ops.not_equal(token_ids, padding), "int32")
    inputs = {
        "token_ids": token_ids,
        "segment_ids": keras.ops.zeros_like(token_ids),
        "padding_mask": mask,
    }
    # `call` adds the backbone's own layers to this graph, one by one; calling the
    # backbone would add it as one layer, with its pooler.
    x = sequence.call([inputs[key] for key in backbone.input])
    x = keras.layers.GlobalAveragePooling1D(name="mean")(x, mask=mask)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    logits = keras.layers.Dense(num_classes, name="logits")(x)
    return keras.Model(token_ids, logits, name=backbone.name)


def _sequence(name: str, backbone: keras.Model) -> keras.Model:
    """Returns the part of a backbone from its inputs to one vector for each token."""
    outputs = backbone.output
    if isinstance(outputs, dict):
        outputs = outputs.get("sequence_output")
    inputs = backbone.input if isinstance(backbone.input, dict) else {}
    valid = "token_ids" in inputs and set(inputs) <= set(_INPUTS)
    if not valid or getattr(outputs, "shape", None) is None or len(outputs.shape) != 3:
        raise errors.ModelError(
            f"`model` ('{name}') must be a backbone from token ids to one vector for "
            f"each token; {type(backbone).__name__} is not."
        )
    return keras.Model(list(inputs.values()), outputs)


def _check_length(sequence_length: int) -> None:
    if sequence_length < 3:
        raise errors.ModelError(
            f"`sequence_length` ({sequence_length}) must be at least 3: a start, a "
            "word and an end."
        )


def keras_hub(name: str) -> types.ModuleType:
    """Imports keras_hub for a model.

    Raises:
      ModelError: it is not installed.
    """
    try:
        return importlib.import_module("keras_hub")
    except ImportError as error:
        raise errors.ModelError(
            f"`model` ('{name}') needs keras_hub: pip install 'mp_loop[text]'."
        ) from error


def from_preset(kind: str, preset: str, **arguments: object) -> keras.layers.Layer:
    """Calls `keras_hub.models.{kind}.from_preset`; an error becomes one line.

    Raises:
      ModelError: keras_hub is missing, or has no such preset of this kind.
    """
    name = f"{PREFIX}{preset}"
    hub = keras_hub(name)
    if not os.path.isdir(preset):
        known = preset in hub.models.Backbone.presets or "://" in preset
        if not known:
            raise errors.ModelError(
                f"`model` ('{name}') must name a folder, a preset of keras_hub such as "
                "bert_tiny_en_uncased, or a handle such as hf://user/model."
            )
        host = preset.partition("://")[0]
        if not download.has_network(_PROBE_ADDRESSES.get(host, _PROBE_ADDRESS)):
            raise errors.ModelError(
                f"`model` ('{name}') may have to be downloaded and there is no "
                "network: run once with network, then name the folder it was put in."
            )
    try:
        return getattr(hub.models, kind).from_preset(preset, **arguments)
    except Exception as error:  # Files, config or download can raise any type.
        raise errors.ModelError(
            errors.because(f"`model` ('{name}') cannot be loaded", error)
        ) from error
