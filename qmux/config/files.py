"""Reading a file that a user named: only regular files, only so many bytes, and in words why it cannot be read."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class ReadError(Exception):
    """A file cannot be read; the text says why, without the file's name."""


def read_file(path: Path, max_bytes: int) -> bytes:
    """The whole content. Raises ReadError. A FIFO or a device is refused: reading one could wait for ever."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISDIR(mode):
                raise ReadError("is a directory; name a file in it")
            if not stat.S_ISREG(mode):
                raise ReadError("is not a regular file")
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ReadError("no such file") from None
    except IsADirectoryError:
        raise ReadError("is a directory; name a file in it") from None
    except PermissionError:
        raise ReadError(f"may not be read by this user (uid {os.geteuid()}); change its owner or mode") from None
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL byte in the name
        raise ReadError(f"cannot be read: {error}") from None
    if len(data) > max_bytes:
        raise ReadError(f"is larger than {max_bytes} bytes: this is some other file")
    return data


def is_world_readable(path: Path) -> bool:
    """Whether every user of this machine may read ``path``; False where that cannot be found out."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
