"""Limits on the head of an HTTP request: it has to arrive within a time and a size.

uvicorn has neither limit.
"""

from __future__ import annotations

from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from consentry.ops.http.problems import problem_response

HEAD_SECONDS: Final = 10.0
HEAD_BYTES_MAX: Final = 65_536
"""A single read of the socket, of 256 KiB at most, may bring more than this and still pass."""


class HeadLimits(HttpToolsProtocol):
    """An HTTP server's protocol that answers 408 to a slow request head, 431 to a large one.

    It is uvicorn's protocol with these two limits. A head that comes in one piece, as nearly all
    do, costs nothing more. The time runs from the opening of the connection, and on a kept
    connection from the first byte after the last request.
    """

    head_seconds: float = HEAD_SECONDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: TimerHandle | None = None
        self._is_in_head = False
        self._head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self._refuse(
                    431, "The head of the request is too large.", code="input.head_too_large"
                )
        if self._deadline is None and (self._is_in_head or self._is_blank_between_requests):
            self._start_timer()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._is_in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Leave a request head that began before this response was complete to its own timer.

        uvicorn starts its keep-alive timer here, which would close the connection unanswered.
        """
        super().on_response_complete()
        if self._is_in_head:
            self._unset_keepalive_if_required()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP with a problem, as any other error of the service."""
        self._refuse(400, msg, code="http.400")

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _is_blank_between_requests(self) -> bool:
        """True if the last bytes were blank lines between two requests.

        Any byte ends uvicorn's own keep-alive timer, and blank lines start no other.
        """
        return self._is_idle and self.timeout_keep_alive_task is None

    def _start_timer(self) -> None:
        if not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.head_seconds, self._expire)

    def _stop_timer(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if not self._is_idle:
            self._start_timer()  # the request before it is still being answered
        elif self._is_in_head:
            self._refuse(
                408, f"The head did not arrive within {self.head_seconds:g} s.", code="input.slow"
            )
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, *, code: str) -> None:
        """Answer in place of the application, which never sees this request, and close."""
        response = problem_response(
            status, message, code=code, fix="send HTTP/1.1, the head at once and not too large"
        )
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        for name, value in response.raw_headers:
            lines.append(f"{name.decode()}: {value.decode()}")
        lines.append("connection: close")
        head = "\r\n".join([*lines, "", ""])
        self.transport.write(head.encode() + bytes(response.body))
        self.transport.close()
