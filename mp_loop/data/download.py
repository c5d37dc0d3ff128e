"""Finds a TFDS data set: in the package, in a folder, or by download."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import pathlib
import shutil
import socket
import tempfile
import urllib.request

import tensorflow_datasets as tfds

from mp_loop.config import errors, names

# Where TFDS keeps prepared data sets: without an answer from this host there is no
# network. TFDS itself would retry for more than three minutes.
_PROBE_ADDRESS = ("storage.googleapis.com", 443)
_PROBE_SECONDS = 5.0


def prepared_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set whose files are on this machine.

    Args:
      name: `fashion_mnist_mini`, or what `tfds.load` takes.
      data_dir: TFDS's folder; "" is TFDS's default. What is not there is downloaded.

    Raises:
      DataError: unknown name, no network, or the data set cannot be prepared.
    """
    if name in names.EMBEDDED_DATA:
        files = importlib.resources.files("mp_loop.datasets") / name / "1.0.0"
        return tfds.builder_from_directory(str(files))
    root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    try:
        # TFDS reads the files' own metadata if there is no builder code.
        builder = tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError as error:
        raise errors.DataError(
            f"Data set '{name}' is neither in '{root}' nor known to TFDS; embedded: "
            f"{', '.join(names.EMBEDDED_DATA)}; point --data_dir at the folder that "
            "holds it."
        ) from error
    except Exception as error:  # A builder's code or broken JSON raises any type.
        raise errors.DataError(
            errors.because(f"Data set '{name}' cannot be opened", error)
        ) from error
    if not builder.is_prepared():
        _download(name, builder, root)
    return builder


def _download(name: str, builder: tfds.core.DatasetBuilder, root: str) -> None:
    """Downloads and prepares a data set; a failure leaves the disk as it was."""
    advice = (
        "run once with network so that TFDS downloads it, or point --data_dir at a "
        "folder that holds it"
    )
    if not has_network(_PROBE_ADDRESS):
        raise errors.DataError(
            f"Data set '{name}' is not in '{root}' and there is no network: {advice}."
        )
    folders = [*_lineage(str(builder.data_path)), *_lineage(root)]
    new = [folder for folder in folders if not folder.exists()]
    work = None
    try:
        os.makedirs(root, exist_ok=True)
        work = tempfile.mkdtemp(prefix=".mp_loop_download_", dir=root)
        # Files that users fetch by hand are where TFDS tells them to put them.
        config = tfds.download.DownloadConfig(
            manual_dir=os.path.join(root, "downloads", "manual")
        )
        builder.download_and_prepare(download_dir=work, download_config=config)
    except Exception as error:  # Network, disk, checksum or parser raise any type.
        raise errors.DataError(
            errors.because(
                f"Data set '{name}' cannot be prepared in '{root}'; {advice}", error
            )
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        # Empty folders that were made on the way are removed, innermost first.
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lineage(folder: str) -> list[pathlib.Path]:
    path = pathlib.Path(folder).absolute()
    return [path, *path.parents]


def has_network(address: tuple[str, int]) -> bool:
    """Tells at once whether a download can begin; libraries retry for minutes.

    Args:
      address: host and port that must answer, unless there is a proxy.
    """
    if {"http", "https", "all"} & set(urllib.request.getproxies()):
        return True
    try:
        socket.create_connection(address, timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True
