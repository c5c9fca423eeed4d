"""Files that are whole or not there."""

import os
from pathlib import Path


def write(content: str | bytes, path: Path) -> None:
    """All or nothing: beside it first, so that a full disk leaves an earlier file as it was."""
    data = content.encode() if isinstance(content, str) else content
    place = path.resolve()  # a link stays one
    if (place.exists() and not place.is_file()) or not os.access(place.parent, os.W_OK):
        place.write_bytes(data)  # a device or a pipe, or no room beside it
        return
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
