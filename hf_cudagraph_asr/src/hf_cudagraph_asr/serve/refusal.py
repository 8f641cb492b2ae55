"""Why a request is not answered with a transcript, as JSON that says what to do."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Refusal"]


class Refusal(Exception):
    """A request that ends with an error; the body is `{"error": ..., "detail": ...}`.

    Args:
        status: of HTTP.
        error: a word for programs, always the same for the same cause.
        detail: for people: what was given, what was expected, what to do.
        headers: of the response.
    """

    def __init__(
        self, status: int, error: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, error, detail)
        self.status = status
        self.error = error
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self) -> dict[str, str]:
        """What the client is sent."""
        return {"error": self.error, "detail": self.detail}
