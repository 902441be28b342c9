"""Where data files live: checked, never changed, downloaded only into flatwise's cache, which has decoded data too."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
        ImportError: a download is needed and the package pooch is not installed.
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
        places = ", ".join(f"'{place}'" for place in _places(file, folder))
        raise DataError(
            f"'{file.name}' is not in the data folder '{folder}' (from {given_as}): looked for {places}. Put the file "
            f"in one of these places, or give neither data_dir nor {ENVIRONMENT_VARIABLE} to have it downloaded."
        )
    return content


def cache_folder() -> Path:
    """Return flatwise's own folder in the user's cache; it need not exist.

    Raises:
        ImportError: the package pooch is not installed.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError("flatwise's cache is found by pooch: pip install 'flatwise[compare]'.") from error
    return Path(pooch.os_cache("flatwise"))


def _read_from_cache(file: DataFile) -> bytes:
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"to download '{file.name}', pooch is needed: pip install 'flatwise[compare]', or give a folder that has "
            f"the file as data_dir or in {ENVIRONMENT_VARIABLE}."
        ) from error

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


def _places(file: DataFile, folder: Path) -> list[Path]:
    return [folder / inner / file.name for inner in file.folders]


def _find(file: DataFile, folder: Path) -> bytes | None:
    """Content of the first place that has the file, or ``None``."""
    for path in _places(file, folder):
        # Opening is the test: Path.exists() calls a file in a folder that may not be entered missing.
        try:
            return _read_checked(path, file.sha256)
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
    cached = _read(path, math.prod(shape))
    if cached is not None:
        return cached.reshape(shape)
    made = make()
    assert made.shape == shape
    with contextlib.suppress(OSError):
        _write(path, np.ascontiguousarray(made))
    return made


def _read(path: Path, size: int) -> Pixels | None:
    """The array, flat, or ``None`` where the file is missing, unreadable or not what was written."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    digest, pixels = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    if len(pixels) != size or digest.tobytes() != hashlib.sha256(pixels.data).digest():
        return None
    return pixels


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(pixels.data).digest())
        file.write(pixels.data)
