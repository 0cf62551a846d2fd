"""The progress of an export, which the exporters report and the command shows."""

from __future__ import annotations


class Progress:
    """The steps of an export. This class ignores them; the command's shows a bar."""

    def add_steps(self, count: int) -> None:
        """Announce how many steps the export takes in all, as soon as it is known."""

    def step(self, message: str) -> None:
        """Begin a step, with a short description of it."""

    def describe(self, message: str) -> None:
        """Say what the step that takes long is doing."""


NO_PROGRESS = Progress()
