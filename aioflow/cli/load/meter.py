"""The progress bar on standard error; nothing where that is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Meter:
    """Shows one stage after the other."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.fields[told]}"))
        # Drawn when it is told something: a thread that draws would take turns from the event loop.
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal, auto_refresh=False
        )
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal its cursor back. May be repeated."""
        self._progress.stop()

    def show(self, stage: str, done: float, of: float, told: str) -> None:
        """Where a stage is."""
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(stage, told=told)
        self._progress.update(self._stages[stage], completed=min(done, of), total=of, told=told, refresh=True)
