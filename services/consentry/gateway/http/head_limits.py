"""The head of a request has to come, whole, within a time and a size: uvicorn has neither bound for
it.
"""

from __future__ import annotations

from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from consentry.ops.http.problems import problem_response

HEAD_SECONDS: Final = 10.0
HEAD_BYTES_MAX: Final = 65_536
"""What comes in one reading of the socket, 256 KiB at most, may exceed it."""


class HeadLimits(HttpToolsProtocol):
    """uvicorn's protocol, except that a head which comes too slowly is answered 408, and one
    without an end 431.

    A head that comes in one piece, as nearly all do, costs nothing more. The time runs from the
    opening of the connection, and on a kept connection from the first byte after the last request.
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
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._end()
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
        # Any byte ends uvicorn's own timer; blank lines between requests begin none.
        if self._deadline is None and (
            self._is_in_head or (self._is_idle and self.timeout_keep_alive_task is None)
        ):
            self._begin()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._is_in_head = False
        self._end()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as a problem too."""
        self._refuse(400, msg, code="http.400")

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _begin(self) -> None:
        if not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.head_seconds, self._expire)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if not self._is_idle:
            self._begin()  # the request before it is still being answered
        elif self._is_in_head:
            self._refuse(
                408, f"The head did not arrive within {self.head_seconds:g} s.", code="input.slow"
            )
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, *, code: str) -> None:
        """Answer in place of the application, which has not heard of this request, and close."""
        answer = problem_response(
            status, message, code=code, fix="send HTTP/1.1, the head at once and not too large"
        )
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        head += [f"{name.decode()}: {value.decode()}" for name, value in answer.raw_headers]
        self.transport.write(
            "\r\n".join([*head, "connection: close", "", ""]).encode() + bytes(answer.body)
        )
        self.transport.close()
