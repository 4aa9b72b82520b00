"""A folder that appears all at once or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """Gives an empty temporary folder beside `folder`; it takes that name when the block ends well.

    Of two processes that fill the same folder at once, the first keeps the name and the work of the other is
    dropped; after an error, or a kill, nothing stands under the name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's own mode shuts out the other users of a shared cache
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # not a lost race: the disk or the permissions are at fault
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
