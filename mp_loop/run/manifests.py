"""manifest.json: what a checkpoint holds, and proof that nothing has changed.

    manifests.write(folder, manifests.Manifest(step=1200, ...))
    manifest = manifests.read(folder)
    manifests.verify(folder, manifest)     # lengths and checksums of all files

The first line is a JSON object, the second its SHA-256: a manifest that was changed
or torn is recognized before anything else is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping

from mp_loop.config import json_values
from mp_loop.run import file_errors, files

FILE = "manifest.json"
_FORMAT = 1
_TYPES = {
    "format": int,
    "step": int,
    "metrics": dict,
    "phase": int,
    "healthy": bool,
    "retried": bool,
    "tensors": dict,
    "files": dict,
}
_TENSOR_TYPES = {"variable": str, "dtype": str, "shape": list}
_FILE_TYPES = {"bytes": int, "sha256": str}


class CorruptError(Exception):
    """A checkpoint is not what was written; an earlier one may be."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
      step: of the state.
      metrics: of the evaluation made at this step; empty if there was none.
      phase: of the training, from 0.
      healthy: the last step was not skipped.
      retried: a rollback has started from this checkpoint.
      tensors: for each name the `variable` it is of, its `dtype` and `shape`.
      since_line: of the mean metrics; see `mean_metrics.MeanMetrics.state`.
      files: for each file its length in `bytes` and its `sha256`.
    """

    step: int
    metrics: Mapping[str, float]
    phase: int
    healthy: bool
    retried: bool
    tensors: Mapping[str, json_values.Object]
    since_line: Mapping[str, float] = dataclasses.field(default_factory=dict)
    files: Mapping[str, json_values.Object] = dataclasses.field(default_factory=dict)


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes the manifest of a folder, whose other files are complete."""
    body = {"format": _FORMAT, **dataclasses.asdict(manifest)}
    body["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps(body, sort_keys=True)
    seal = hashlib.sha256(text.encode()).hexdigest()
    (folder / FILE).write_text(f"{text}\n{seal}\n", encoding="utf-8")


def read(folder: pathlib.Path) -> Manifest:
    """Reads the manifest of a folder.

    Raises:
      CorruptError: there is none, or it is not what `write` wrote.
    """
    try:
        text, seal, rest = files.read_regular(folder / FILE)[0].split(b"\n")
        if rest or hashlib.sha256(text).hexdigest().encode() != seal:
            raise ValueError
        body = json.loads(text)
    except OSError as error:
        raise CorruptError(f"{FILE}: {file_errors.reason(error)}") from error
    except (ValueError, RecursionError):
        raise CorruptError(f"{FILE} is not what was written") from None
    if not _is_valid(body):
        raise CorruptError(f"{FILE} is of another checkpoint")
    names = [field.name for field in dataclasses.fields(Manifest)]
    return Manifest(**{name: body[name] for name in names if name in body})


def verify(folder: pathlib.Path, manifest: Manifest) -> None:
    """Compares every file of a folder with its manifest.

    Raises:
      CorruptError: a file is missing or has changed.
    """
    for name, file in manifest.files.items():
        path = folder / name
        try:
            length = path.stat().st_size
            same = length == file["bytes"] and sha256(path) == file["sha256"]
        except OSError as error:
            raise CorruptError(f"{name}: {file_errors.reason(error)}") from error
        if not same:
            raise CorruptError(f"{name} is not what was written")


def sha256(path: pathlib.Path) -> str:
    """The checksum of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_valid(body: json_values.Json) -> bool:
    """Whether a manifest has the form that `write` gives it."""
    return (
        _has_types(body, _TYPES)
        and body["format"] == _FORMAT
        and all(_has_types(one, _TENSOR_TYPES) for one in body["tensors"].values())
        and all(_has_types(one, _FILE_TYPES) for one in body["files"].values())
        and all(pathlib.PurePath(name).name == name for name in body["files"])
        and all(isinstance(v, (int, float)) for v in body["metrics"].values())
        # Manifests of earlier versions have none.
        and _has_numbers(body.get("since_line", {}))
    )


def _has_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(number, (int, float)) for number in value.values()
    )


def _has_types(value: object, types: Mapping[str, type]) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), expected) for name, expected in types.items()
    )
