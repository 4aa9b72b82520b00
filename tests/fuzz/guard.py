"""What a reader may do while it reads what others wrote: nothing but read, and write where it was told to.

Python's audit events tell of files opened for writing, processes, connections and names that are unpickled; what
happens below Python shows in a listing of the folders before and after.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": (1, 3),
    "os.remove": (0, 1),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
    "os.chmod": (0, 2),
}
"""By event: which of its arguments is the path that changes, and which the open folder that it is relative to."""
_NEVER = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn", "os.startfile"),
    *(
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "urllib.Request",
        "ftplib.connect",
        "webbrowser.open",
    ),
    *("pickle.find_class", "ctypes.dlopen", "code.__new__", "sys.settrace"),
}
CANARY = "latentite_canary"
"""Name of a module that inputs ask for; in no text of ours."""
MEMORY = 3 << 30
"""Bytes that one case may take beyond what the libraries take."""
LARGEST_FILE = 512 << 20


class Guard:
    """Collects what should not have happened; there is one per process, because audit hooks stay."""

    def __init__(self) -> None:
        self.is_on = False
        self.allowed: list[str] = []
        self.outside = ""
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, allowed: list[Path], outside: Path) -> Iterator[list[str]]:
        """Events inside the block; writes below `allowed` are none, any look into `outside` is."""
        self.allowed = [os.path.join(os.path.realpath(path), "") for path in allowed]
        self.outside = os.path.join(os.path.realpath(outside), "")
        self.events = []
        self.is_on = True
        try:
            yield self.events
        finally:
            self.is_on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int):
                return
            is_write = bool((flags or 0) & _WRITE_FLAGS) or (
                isinstance(mode, str) and set(mode) & set("wax+")
            )
            self._touch("wrote", path, is_write=bool(is_write))
        elif event in _CHANGES:
            place, folder = _CHANGES[event]
            self._touch(
                event, arguments[place], is_write=True, folder=-1 if folder is None else arguments[folder]
            )
        elif event == "import" and CANARY in str(arguments[0]):
            self.events.append(f"imported {arguments[0]}, which the input named")
        elif event in _NEVER:
            self.events.append(f"{event} {arguments[:2]!r:.200}")

    def _touch(self, what: str, path: Any, *, is_write: bool, folder: int = -1) -> None:
        self.is_on = False  # realpath may raise events of its own
        try:
            base = os.getcwd() if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
            real = os.path.realpath(os.path.join(base, os.fsdecode(path)))
        except (TypeError, ValueError, OSError):
            return
        finally:
            self.is_on = True
        if real.startswith(self.outside):
            self.events.append(f"{what if is_write else 'read'} {real}, outside of the source")
        elif (
            is_write
            and real != os.devnull
            and not any((real + os.sep).startswith(one) for one in self.allowed)
        ):
            self.events.append(f"{what} {real}, outside of the given folder")


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = (stat.st_size if not path.is_dir() else 0, stat.st_mtime_ns)
    return found


def limit_memory() -> None:
    """From here on an allocation that is absurd fails, and so does a file."""
    with open("/proc/self/status", encoding="ascii") as file:
        used = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
