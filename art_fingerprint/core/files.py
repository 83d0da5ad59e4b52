"""Files that are files, and that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path

from art_fingerprint.core.checks import shown
from art_fingerprint.exceptions import FingerprintError, InvalidInputError


def regular_file(path: object, what: str, refusal: type[FingerprintError] = InvalidInputError) -> Path:
    """Return the path of a file that can be read to its end, or raise: a pipe or a device may have none.

    :param path: Its path.
    :param what: What it is, for the message: "weights file".
    :param refusal: The error to raise.
    """
    try:
        found = Path(path)  # type: ignore[arg-type]
    except TypeError as error:
        raise refusal(f"The path of a {what} is needed, got {shown(path)}.") from error
    try:
        exists, regular = found.exists(), found.is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or a folder that may not be looked into
        raise refusal(f"There is no {what} {found}: {error}") from error
    if not regular:
        raise refusal(f"There is no {what} {found}{': it is a folder, a pipe or a device' if exists else ''}.")
    return found


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever reads sees the old file or the new one, also after a crash or a full disk. A
    file that is replaced keeps its permissions, and a link goes on to point to it.

    :raises OSError: the file cannot be written; an older one is as before. Folders, pipes and devices are none.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "It is a folder, a pipe or a device, where a file is to be written", str(path))
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as file:  # with the permissions that the user's umask leaves
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
