"""Xid errors, which the driver reports as NVML events. They are polled, never waited for."""

from __future__ import annotations

from typing import Any

from dist_trainer.monitor.gpu.nvml import TIMEOUT, AbsentError, FailedError, LostError, Nvml

_XID_CRITICAL_ERROR = 8
_MAX_A_POLL = 16


class XidWatch:
    """The Xid errors of one GPU. A device without such events (a MIG instance, some cards) never reports any."""

    def __init__(self, nvml: Nvml, handle: Any) -> None:
        self._nvml = nvml
        self._events = None
        try:
            if nvml.ask("nvmlDeviceGetSupportedEventTypes", handle) & _XID_CRITICAL_ERROR:
                events = nvml.ask("nvmlEventSetCreate")
                nvml.ask("nvmlDeviceRegisterEvents", handle, _XID_CRITICAL_ERROR, events)
                self._events = events
        except (AbsentError, FailedError):
            return

    def poll(self) -> tuple[int, ...]:
        """The Xid numbers since the last poll, at most 16. Raises LostError."""
        found: list[int] = []
        while self._events is not None and len(found) < _MAX_A_POLL:
            try:
                event = self._nvml.ask("nvmlEventSetWait_v2", self._events, 0)
            except FailedError as error:
                if error.diagnostic.code != TIMEOUT:
                    self._events = None
                break
            except AbsentError:
                self._events = None
                break
            found.append(int(event.eventData))
        return tuple(found)

    def close(self) -> None:
        if self._events is None:
            return
        try:
            self._nvml.ask("nvmlEventSetFree", self._events)
        except (AbsentError, FailedError, LostError):
            return
        self._events = None
