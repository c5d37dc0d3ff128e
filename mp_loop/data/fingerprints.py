"""What tells data from other data: how many examples, of what, and checksums.

    before = fingerprints.of(source)               # is written into the run folder
    fingerprints.differences(before, fingerprints.of(again))    # ["81 examples ..."]

All of the inputs is read, at some 3 GiB/s: one pixel that is another is told.
"""

from __future__ import annotations

from collections.abc import Mapping

from mp_loop.config import json_values
from mp_loop.data import checksums, sources

# How the parts of a data set are called in messages.
_SPLITS = {"train": "to train on", "test": "to evaluate on"}


def of(source: sources.Source) -> dict[str, json_values.Json]:
    """Returns what a later start of a run must find again, for a JSON file.

    Args:
      source: the data, in memory.
    """
    names = "\x1f".join(source.class_names).encode()
    found: dict[str, json_values.Json] = {
        "shape": list(source.input_shape),
        "classes": source.num_classes,
        "class_names": checksums.crc32(names),
    }
    for split in _SPLITS:
        examples = getattr(source, split)
        found[split] = {"examples": len(examples), **examples.checksums}
    return found


def differences(before: json_values.Object, now: json_values.Object) -> list[str]:
    """Says in words what of two fingerprints differs, the plainest first.

    Args:
      before: of an earlier start.
      now: of this one. What one of them does not have is not compared.
    """
    said = []
    for split, use in _SPLITS.items():
        old, new = before.get(split), now[split]
        if not isinstance(old, Mapping):
            continue
        if _differ(old, new, "examples"):
            said.append(
                f"{new['examples']} examples {use} instead of {old['examples']}"
            )
            continue
        parts = [key for key in new if _differ(old, new, key)]
        if parts:
            said.append(f"other {' and '.join(parts)} {use}")
    if _differ(before, now, "classes"):
        said.append(f"{now['classes']} classes instead of {before['classes']}")
    elif _differ(before, now, "class_names"):
        said.append("other names of classes")
    if _differ(before, now, "shape"):
        said.append(f"examples of shape {now['shape']} instead of {before['shape']}")
    return said


def _differ(before: json_values.Object, now: json_values.Object, key: str) -> bool:
    return key in before and before[key] != now[key]
