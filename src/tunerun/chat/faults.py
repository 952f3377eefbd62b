"""What can be wrong with a conversation or with the template that renders it."""

from __future__ import annotations


class ChatFault(Exception):  # noqa: N818 (a finding about one row, collected by the caller)
    """A conversation cannot be rendered or its trained text cannot be shown.

    Attributes:
        reason: Stable short name, such as `template-drops-text`; reports count by it.
        detail: One sentence for the user.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
