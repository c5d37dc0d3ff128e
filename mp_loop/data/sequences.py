"""Texts as sequences of tokens of one length, each with the next token as its label.

    train = sequences.pack(texts, tokens, length=128)
    inputs, labels = train.take(tf.constant([0, 3]))      # int32 [2, 128] each

The texts follow one another in one long row of tokens, an end-of-text token after
each, which is then cut: every token but the very first is the label of one place.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import checksums, decoding

_TEXTS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What makes token ids of texts.

    Attributes:
      encode: makes the ids of each of some texts, without special tokens.
      end: the id that ends a text.
      start: the id that begins one; None: the end of the text before does.
      vocabulary_size: ids are below it.
    """

    encode: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    end: int
    start: int | None
    vocabulary_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """Packed texts.

    Attributes:
      rows: int32 [n, length + 1]; the last token of a row is the first of the next.
      padding: how many tokens at the end of the last row are not of a text.
    """

    rows: np.ndarray
    padding: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def length(self) -> int:
        """Places of a sequence."""
        return self.rows.shape[1] - 1

    @property
    def tokens(self) -> int:
        """Labels that count."""
        return len(self) * self.length - self.padding

    @property
    def checksums(self) -> dict[str, str]:
        """What changes if a token does, or where the texts end."""
        return {"tokens": checksums.crc32(self.rows, start=self.padding)}

    @property
    def counts(self) -> np.ndarray | None:
        """How many labels of each sequence count, int64 [n]; None: all."""
        if not self.padding:
            return None
        found = np.full(len(self), self.length)
        found[-1] -= self.padding
        return found

    @functools.cached_property
    def on_host(self) -> tf.Tensor:
        """The rows as one tensor in host memory, for all epochs."""
        return decoding.in_host_memory(self.rows)

    def take(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the tokens and the next tokens of some sequences.

        Args:
          index: integers [batch].

        Returns:
          int32 [batch, length] each.
        """
        rows = tf.gather(self.on_host, index)
        return rows[:, :-1], rows[:, 1:]

    def split(self, share: float) -> tuple[Sequences, Sequences]:
        """Returns the first sequences, and the last ones, about a share of all.

        Args:
          share: in (0, 1); each part gets a sequence at least.
        """
        kept = len(self) - min(max(1, round(share * len(self))), len(self) - 1)
        return Sequences(self.rows[:kept]), Sequences(self.rows[kept:], self.padding)


def pack(name: str, texts: Iterable[str], tokens: Tokens, length: int) -> Sequences:
    """Packs texts into sequences.

    Args:
      name: of the data set, for messages.
      texts: in order; empty ones are left out.
      tokens: what makes ids of them.
      length: places of each sequence.

    Raises:
      DataError: there is no text, an id is not of the vocabulary, or the ids take
        more than `MAX_DECODED_BYTES`.
    """
    parts = [np.array([tokens.end], np.int32)] if tokens.start is None else []
    size = 0
    for ids in _encoded(texts, tokens):
        parts.append(ids)
        size += ids.nbytes
        if size > decoding.MAX_DECODED_BYTES:
            raise decoding.too_large(name, size)
    stream = np.concatenate(parts) if size else np.zeros(0, np.int32)
    if len(stream) < 2:
        raise errors.DataError(f"Data set '{name}' holds no text.")
    if stream.min() < 0 or stream.max() >= tokens.vocabulary_size:
        raise errors.DataError(
            f"Data set '{name}' has token ids from {stream.min()} to {stream.max()}; "
            f"the model's are in [0, {tokens.vocabulary_size})."
        )
    count = -(-(len(stream) - 1) // length)
    padding = count * length + 1 - len(stream)
    stream = np.pad(stream, (0, padding))
    # One token of each row is in the next row as well.
    rows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length]
    return Sequences(np.ascontiguousarray(rows), padding)


def _encoded(texts: Iterable[str], tokens: Tokens) -> Iterator[np.ndarray]:
    """Yields the ids of texts, int32, special tokens included."""
    before = [] if tokens.start is None else [tokens.start]
    left = filter(None, texts)
    while batch := list(itertools.islice(left, _TEXTS_AT_ONCE)):
        for ids in tokens.encode(batch):
            yield np.concatenate([before, ids, [tokens.end]]).astype(np.int32)
