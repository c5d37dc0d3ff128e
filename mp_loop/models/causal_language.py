"""Models that predict the next token of a text.

    model = causal_language.build("small_decoder", sequence_length=128)
    tokens = causal_language.tokens("small_decoder", model)
    logits = model(causal_language.inputs(model)(ids))     # [batch, 128, vocabulary]

Valid names:

    small_decoder              four pre-norm blocks of width 128; its tokens are bytes
    keras_hub:PRESET           a CausalLM of keras_hub with its own tokenizer
    folder/model.keras         a saved model
    package.module:f           f(input_shape, num_classes) of (sequence_length,) and the
                               vocabulary of bytes: this runs your code

All but the last are models of keras_hub, whose `generate` continues a text. Inputs are
token ids, [batch, length], or a dictionary of these and a padding mask; outputs are
logits, [batch, length, vocabulary], without softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import sequences
from mp_loop.models import catalog, checks, language, saved_models

_END_OF_TEXT = "<|endoftext|>"
# Ids of bytes are their values. No text in UTF-8 holds the bytes that are merged: the
# tokenizer must be given something to merge.
_NEVER_MERGED = ("ÿ", "þ")
_WIDTH, _BLOCKS, _HEADS = 128, 4, 4
_INPUTS = ("token_ids", "padding_mask")


def build(
    name: str, sequence_length: int, dropout: float = 0.0, seed: int = 0
) -> keras.Model:
    """Builds or loads a float32 language model.

    Args:
      name: see the module's docstring.
      sequence_length: tokens of each text in training.
      dropout: rate of `small_decoder`; a pretrained model has its own.
      seed: of the initial weights and of dropout. `keras.utils.set_random_seed` is
        called with it, as in `catalog.build`.

    Returns:
      A functional model as the module's docstring describes it.

    Raises:
      ModelError: keras_hub is missing, the model cannot be loaded, is not one from
        tokens to logits of the next one, or has fewer positions.
    """
    if dropout and name != "small_decoder":
        raise errors.ModelError(
            f"`dropout` ({dropout}) is for small_decoder; '{name}' has its own."
        )
    keras.utils.set_random_seed(seed)
    model = _made(name, sequence_length, dropout)
    _check(name, model, sequence_length)
    keras.utils.set_random_seed(seed)  # whatever loading drew
    # The training loop brings loss and optimizer. Those that keras_hub compiles every
    # model with would be saved, and a warning be all that a reader gets of them.
    model.compiled = False
    return model


def tokens(name: str, model: keras.Model) -> sequences.Tokens:
    """Returns the tokenizer of a model; that of bytes for a model without one.

    Args:
      name: of the model, for messages.
      model: what `build` returned.

    Raises:
      ModelError: the tokenizer has no token that ends a text, or more tokens than
        the model.
    """
    preprocessor = getattr(model, "preprocessor", None)
    tokenizer = preprocessor.tokenizer if preprocessor else byte_tokenizer()
    end = getattr(tokenizer, "end_token_id", None)
    if end is None:
        raise errors.ModelError(
            f"`model` ('{name}') must have a token that ends a text; its tokenizer, "
            f"{type(tokenizer).__name__}, has none."
        )
    known, size = tokenizer.vocabulary_size(), model.outputs[0].shape[-1]
    if known > size:
        raise errors.ModelError(
            f"`model` ('{name}') gives {size} numbers for each token; its tokenizer "
            f"has {known} tokens."
        )

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(ids, np.int32) for ids in tokenizer(list(texts))]

    start = getattr(tokenizer, "start_token_id", None)
    return sequences.Tokens(encode, end, None if start == end else start, size)


def inputs(model: keras.Model) -> Callable[[tf.Tensor], dict[str, tf.Tensor]] | None:
    """Returns what makes a model's inputs of token ids; None: they are its input."""
    if not isinstance(model.input, dict):
        return None

    def named(token_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        # Padding comes last, where no other token sees it.
        made = {"token_ids": token_ids, "padding_mask": tf.ones_like(token_ids)}
        return {key: made[key] for key in model.input}

    return named


def small_decoder(sequence_length: int, dropout: float = 0.0) -> keras.Model:
    """A decoder as GPT-2 (Radford et al. 2019), small: tokens are bytes.

    Four pre-norm blocks of width 128 with four heads of causal attention, learned
    positions, and a head that shares the table of tokens.

    Args:
      sequence_length: the number of its positions.
      dropout: rate in every block and after the embedding.

    Raises:
      ModelError: keras_hub is missing.
    """
    hub = language.keras_hub("small_decoder").models
    tokenizer = byte_tokenizer()
    backbone = hub.GPT2Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=_BLOCKS,
        num_heads=_HEADS,
        hidden_dim=_WIDTH,
        intermediate_dim=4 * _WIDTH,
        dropout=dropout,
        max_sequence_length=sequence_length,
        dtype="float32",
    )
    processor = hub.GPT2CausalLMPreprocessor(tokenizer, sequence_length)
    return hub.GPT2CausalLM(backbone, processor)


def byte_tokenizer() -> keras.layers.Layer:
    """Makes a tokenizer whose ids are the bytes of a text, and 256 its end.

    It is GPT-2's, which begins with bytes, without any merges: nothing of it has to
    be downloaded, and keras_hub alone loads a model that has it.

    Raises:
      ModelError: keras_hub is missing.
    """
    hub = language.keras_hub("small_decoder").models
    # GPT-2 shows bytes as letters: those that print as themselves, others from 256 on.
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    letters |= {chr(256 + place): byte for place, byte in enumerate(hidden)}
    letters |= {_END_OF_TEXT: 256, "".join(_NEVER_MERGED): 257}
    return hub.GPT2Tokenizer(letters, [" ".join(_NEVER_MERGED)])


def _made(name: str, sequence_length: int, dropout: float) -> Any:
    if name == "small_decoder":
        return small_decoder(sequence_length, dropout)
    if name.startswith(language.PREFIX):
        preset = name.removeprefix(language.PREFIX)
        return language.from_preset("CausalLM", preset, dtype="float32")
    if name.endswith(".keras"):
        language.keras_hub(name)  # Keras finds its classes once it is imported
        return saved_models.load(name)
    make = catalog.user_function(name)
    return make((sequence_length,), byte_tokenizer().vocabulary_size())


def _check(name: str, model: Any, sequence_length: int) -> None:
    """Refuses what is not a model from tokens to logits of the next one."""
    checks.check_float32(name, model)
    given = model.input
    named = given if isinstance(given, dict) else {"token_ids": given}
    shapes = [tuple(x.shape) for x in model.outputs]
    valid = "token_ids" in named and set(named) <= set(_INPUTS)
    if not valid or len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][-1] is None:
        raise errors.ModelError(
            f"`model` ('{name}') must be a model from token ids to logits of the next "
            f"token; {type(model).__name__} takes {', '.join(map(str, named))} and "
            f"gives {', '.join(map(str, shapes))}."
        )
    backbone, fixed = getattr(model, "backbone", None), named["token_ids"].shape[1]
    longest = getattr(backbone, "max_sequence_length", fixed)
    if longest is not None and sequence_length > longest:
        raise errors.ModelError(
            f"`sequence_length` ({sequence_length}) must be at most {longest}, the "
            f"number of positions of '{name}'."
        )
