"""Feeds a child with cases, notices when it hangs or dies, and keeps what was found."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from fuzz.case import Case

SECONDS = 120.0
"""Of wall time after which a case that takes no processor time hangs too; the child bounds processor time."""


@dataclass(kw_only=True, slots=True)
class Result:
    """One case, judged."""

    case: Case
    findings: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Child:
    """A child process with folders of its own; started when it is needed, and again when it died."""

    def __init__(
        self, command: Sequence[str] = (sys.executable, "-m", "fuzz.child"), seconds: float = SECONDS
    ) -> None:
        self._command, self._seconds = command, seconds
        self._root = Path(tempfile.mkdtemp(prefix="latentite-fuzz-"))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        shutil.rmtree(self._root, ignore_errors=True)

    def judge(self, case: Case) -> Result:
        """Findings of one case; a child that hangs or dies is one."""
        folder = self._root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "files").mkdir(parents=True)
        (folder / "outside").mkdir()
        case.write(folder / "files", folder / "outside")
        (folder / "case.json").write_text(case.to_json(), encoding="utf-8")
        process = self._process or self._start()
        start = time.monotonic()
        assert process.stdin is not None
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        answer = self._answer(process, self._seconds)
        seconds = time.monotonic() - start
        if answer is None:
            return Result(case=case, findings=[f"death: {self._stop()}"], seconds=seconds)
        return Result(case=case, seconds=seconds, findings=answer["findings"], counts=answer["counts"])

    def _start(self) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
        }
        self._log = (self._root / "stderr").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [*self._command, str(self._root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        if self._answer(self._process, 300.0) != "ready":
            raise RuntimeError(f"the fuzzer's child did not start: {self._stop()}")
        return self._process

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> object:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else ""
        return json.loads(line) if line else None

    def _stop(self) -> str:
        """Ends the child; gives how it died and the last that it said."""
        process, self._process = self._process, None
        if process is None:
            return ""
        for _ in range(20):
            if process.poll() is not None:
                break
            time.sleep(0.05)
        code = process.poll()
        if code is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.seek(0)
        said = self._log.read()
        self._log.close()
        trace = [line.strip() for line in said.splitlines() if line.strip().startswith("File ")][:12]
        how = "a hang without an end" if code is None else f"exit code {code}"
        if code is not None and code < 0:
            how = "a hang" if -code == signal.SIGPROF else signal.Signals(-code).name
        return f"{how}; {' '.join(trace) or said[-300:]}"


def judged(cases: Iterable[Case]) -> Iterator[Result]:
    """Each case with its findings, in order."""
    with Child() as child:
        for case in cases:
            yield child.judge(case)


def keep(result: Result, folder: Path) -> Path:
    """The files of a finding and what is known of it."""
    place = folder / f"{result.case.name}-{result.findings[0].split(':')[0].replace(' ', '_')}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "files").mkdir(parents=True)
    result.case.write(place / "files", Path("outside"))
    (place / "case.json").write_text(result.case.to_json(), encoding="utf-8")
    (place / "findings.txt").write_text("\n".join([result.case.kind, *result.findings, ""]), encoding="utf-8")
    return place
