"""Where data files live: checked, never changed, downloaded only into flatwise's cache, which has decoded data too."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pooch

from flatwise.study.export import written_whole
from flatwise.study.tasks.classification import DataError, Pixels

ENVIRONMENT_VARIABLE = "FLATWISE_DATA"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A published file that flatwise knows by its checksum.

    Attributes:
        name: file name, such as ``"train-images-idx3-ubyte.gz"``.
        sha256: SHA-256 of its content, 64 hexadecimal digits.
        folders: where it may lie inside a data folder, tried in order; ``""`` is the folder itself. A download goes to
            the first.
        mirrors: base URLs that end in ``/``, tried in order; the file's address is mirror + name. None: a file that is
            published nowhere, and cannot be downloaded.
    """

    name: str
    sha256: str
    folders: tuple[str, ...]
    mirrors: tuple[str, ...]


def read_file(file: DataFile, data_dir: str | Path | None = None) -> bytes:
    """Return the content of ``file``, after checking its checksum.

    The data folder is ``data_dir``; if that is ``None``, the environment variable ``FLATWISE_DATA`` (unset or empty: no
    folder); else the per-user cache of flatwise. The first that is given is the only one looked at. A folder given by
    the user is never written to. A file missing from the cache is downloaded into it, without a progress bar.

    Args:
        file: the file to read.
        data_dir: folder to read from.

    Raises:
        DataError: the folder or file is missing or unreadable, the content differs from the published one, or no
            mirror could deliver it. A file that is already there is never overwritten or deleted.
    """
    if data_dir is not None:
        return _read_from_user(file, Path(data_dir), "data_dir")
    if from_environment := os.environ.get(ENVIRONMENT_VARIABLE):
        return _read_from_user(file, Path(from_environment), ENVIRONMENT_VARIABLE)
    return _read_from_cache(file)


def _read_from_user(file: DataFile, folder: Path, given_as: str) -> bytes:
    folder = folder.expanduser()
    if not folder.is_dir():
        raise DataError(f"{given_as} names the folder '{folder}', which is not there: give an existing folder.")
    content = _find(file, folder)
    if content is None:
        places = ", ".join(f"'{folder / inner / file.name}'" for inner in file.folders)
        raise DataError(
            f"'{file.name}' is not in the data folder '{folder}' (from {given_as}): looked for {places}. Put the file "
            f"in one of these places, or give neither data_dir nor {ENVIRONMENT_VARIABLE} to have it downloaded."
        )
    return content


def cache_folder() -> Path:
    """Return flatwise's own folder in the user's cache; it need not exist."""
    return Path(pooch.os_cache("flatwise"))


def _read_from_cache(file: DataFile) -> bytes:
    folder = cache_folder()
    content = _find(file, folder)
    if content is not None:
        return content

    if not file.mirrors:
        raise DataError(
            f"'{file.name}' is published nowhere and cannot be downloaded: give the folder that has "
            f"'{file.folders[0]}/{file.name}' as data_dir or in {ENVIRONMENT_VARIABLE}."
        )

    # Only a file that is not there gets here, so pooch, which replaces files of another checksum, replaces none.
    destination = folder / file.folders[0]
    failures = []
    for mirror in file.mirrors:
        url = mirror + file.name
        try:
            # pooch downloads to a temporary name and moves it into place only if the checksum is right.
            pooch.retrieve(url, known_hash=f"sha256:{file.sha256}", fname=file.name, path=destination)
        except (OSError, ValueError) as error:  # no network, an HTTP error, a full disk; ValueError: another checksum
            failures.append(f"{url}: {' '.join(str(error).split())}")
        else:
            return _read_checked(destination / file.name, file.sha256)
    raise DataError(
        f"'{file.name}' could not be downloaded to '{destination}': get it by other means and give its folder as "
        f"data_dir or in {ENVIRONMENT_VARIABLE}. Tried {'; '.join(failures)}"
    )


def _find(file: DataFile, folder: Path) -> bytes | None:
    """Content of the first place that has the file, or ``None``."""
    for inner in file.folders:
        # Opening is the test: Path.exists() calls a file in a folder that may not be entered missing.
        try:
            return _read_checked(folder / inner / file.name, file.sha256)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return None


def _read_checked(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read ({error.strerror}): make it readable or give another folder."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"'{path}' is corrupt: expected SHA-256 {sha256}, found {found}. flatwise leaves it as it is: replace or "
            "remove it."
        )
    return content


DIGEST_SIZE = 32


def cached_pixels(key: str, shape: tuple[int, ...], make: Callable[[], Pixels]) -> Pixels:
    """Return the array that ``make`` makes, from the cache if it is there whole; else make it and keep it.

    The file ``decoded/<key>`` holds the SHA-256 of the bytes, then the bytes in C order. It appears under its name
    only when it is complete, so processes may ask for the same array at the same time. One that is cut off or changed
    is made anew. Where the cache cannot be written, the array is made each time.

    Args:
        key: name of the file: one for each content, so with the checksum of what the array is decoded from.
        shape: shape of the array.
        make: makes the array, uint8.
    """
    path = cache_folder() / "decoded" / key
    cached = _read_cached(path, math.prod(shape))
    if cached is not None:
        return cached.reshape(shape)
    made = np.ascontiguousarray(make())
    assert made.shape == shape
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            file.write(hashlib.sha256(made.data).digest())
            file.write(made.data)
    return made


def _read_cached(path: Path, size: int) -> Pixels | None:
    """The array, flat, or ``None`` if the file is missing, unreadable or not what was written."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    digest, pixels = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    if len(pixels) != size or digest.tobytes() != hashlib.sha256(pixels.data).digest():
        return None
    return pixels


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses all names that a pickle may call but those of which arrays are made, and a few more."""

    def __init__(self, content: bytes, encoding: str, also: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)
        reconstruct = np.empty(0).__reduce__()[0]
        self._allowed = {
            # numpy.core became numpy._core in numpy 2; published files have the old name.
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _dtype,
            **also,
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")
        return self._allowed[module, name]


def _dtype(name: str | bytes, align: int, copy: int) -> np.dtype[Any]:
    # Pickles of Python 2 have bytes and ints here, which newer numpy warns of.
    return np.dtype(name.decode() if isinstance(name, bytes) else name, align=bool(align), copy=bool(copy))


def unpickle(content: bytes, encoding: str, also: Mapping[tuple[str, str], Any] = MappingProxyType({})) -> Any:
    """Return what is in a pickle of Python 2: arrays, dicts, lists, numbers and text; other pickles could run code.

    Args:
        content: the pickle.
        encoding: of its strings.
        also: what else may be made, by module and name.

    Raises:
        pickle.UnpicklingError: it names something else. A broken pickle can raise anything.
    """
    return _ArrayUnpickler(content, encoding, also).load()
