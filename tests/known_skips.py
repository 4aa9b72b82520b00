"""A pytest plugin: in CI a run fails when a test is skipped for a reason that is not known here.

A test that is skipped tests nothing, and nobody reads the reasons of a green run: for months the tests of the energies
were skipped in CI, which did not install chgnet. So a new reason is a decision, made by adding it here.
"""

from __future__ import annotations

import os
import re

import pytest

KNOWN = [
    # Real data and reference files, which are not in the repository.
    r"no real data in .*",
    r"no reference files in .*",
    r"the shared reference files are not here",
    r"no /.*\.csv\.gz",
    # Extras that `dev` leaves out: compiled against torch, or heavy.
    r"torch_scatter is (not )?installed",
    r"the extra `sevennet` is not installed",
    # The machine.
    r"needs a GPU",
    r"workers are forked on Linux only",
    r"needs /proc to name open files",
    r"no sha256sum here",
    # What a parametrized test has nothing to say of.
    r"the model has no conditions",
]
"""Patterns of the whole reason. What `pip install -e '.[dev]'` brings is never a known reason."""


def is_known(reason: str) -> bool:
    return any(re.fullmatch(pattern, reason.removeprefix("Skipped: ")) for pattern in KNOWN)


def is_worker(config: pytest.Config) -> bool:
    """Workers of pytest-xdist hand their reports on to the process that was started by hand."""
    return hasattr(config, "workerinput")


class Watch:
    """Collects the skips of a run; the last to be asked what it ends with."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2]
            if not is_known(reason):
                self.unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and os.environ.get("CI") and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skips for reasons that tests/known_skips.py does not know")
            for line in self.unexpected:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if not is_worker(config):
        config.pluginmanager.register(Watch(), "known_skips.Watch")
