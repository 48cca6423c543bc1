"""NVML in this process: initialised once, called through one method, its errors sorted by what the caller can do."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from dist_trainer.monitor.gpu import diagnostics as diagnostics
from dist_trainer.monitor.gpu.diagnostics import Diagnostic, Say

_UNINITIALIZED = 1
_INVALID_ARGUMENT = 2
_NO_PERMISSION = 4
_NOT_FOUND = 6
_DRIVER_NOT_LOADED = 9
_LIBRARY_NOT_FOUND = 12
_GPU_IS_LOST = 15
_RESET_REQUIRED = 16
_LIB_RM_VERSION_MISMATCH = 18
UNKNOWN = 999
TIMEOUT = 10
# NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND, NO_DATA, ARGUMENT_VERSION_MISMATCH, DEPRECATED, INVALID_ARGUMENT: the
# device or the driver does not have what was asked for.
_ABSENT = {3, _NOT_FOUND, 13, 21, 25, 26, _INVALID_ARGUMENT}


class NvmlError(Exception):
    """A call that failed. `diagnostic.code` is NVML's return code, None if the failure was not NVML's."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.message)
        self.diagnostic = diagnostic


class AbsentError(NvmlError):
    """The device or the driver does not have this: asking again is no use, and nothing is reported."""


class FailedError(NvmlError):
    """This call failed; other calls may succeed."""


class LostError(NvmlError):
    """Nothing more can be read from this device."""


class Nvml:
    """NVML for this process. Initialised again, once, after a fork or if other code has shut it down.

    `generation` counts initialisations: a handle is valid only in the generation in which it was made.
    """

    def __init__(self, say: Say) -> None:
        """Raises LostError if the library or the driver is missing, or access is not permitted."""
        self._say = say
        self.generation = 0
        self._pid = 0
        self._initialise()

    def ask(self, call: str, *arguments: Any, **named: Any) -> Any:
        """Calls the pynvml function of this name. Raises AbsentError, FailedError or LostError."""
        if os.getpid() != self._pid:
            self._initialise_again("this process was forked from the one that had initialised NVML", call)
        import pynvml

        function = getattr(pynvml, call, None)
        if function is None:
            raise AbsentError(Diagnostic("absent", f"{call}: nvidia-ml-py here is too old for it", call=call))
        try:
            return function(*arguments, **named)
        except pynvml.NVMLError as error:
            failure = sorted_error(error.value, str(error), call)
        if failure.diagnostic.code == _UNINITIALIZED:
            if self.generation > 1:
                raise LostError(failure.diagnostic)
            self._initialise_again("something in this process had shut NVML down", call)
        raise failure

    def close(self) -> None:
        """Shuts down this use of NVML; other users in the process keep theirs. A forked child leaves its parent's."""
        import pynvml

        if os.getpid() != self._pid:
            return
        self._pid = 0
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return

    def _initialise_again(self, reason: str, call: str) -> NoReturn:
        """Raises FailedError even after success: the handle of the failed call belongs to the previous generation."""
        self._initialise()
        message = f"{reason}; it was initialised again, and sampling goes on"
        diagnostic = Diagnostic(diagnostics.INITIALISED_AGAIN, message, call=call, code=_UNINITIALIZED)
        self._say(diagnostic)
        raise FailedError(diagnostic)

    def _initialise(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            failure = sorted_error(error.value, str(error), "nvmlInit")
            raise LostError(failure.diagnostic) from error
        self._pid = os.getpid()
        self.generation += 1


def sorted_error(code: int, text: str, call: str) -> NvmlError:
    """The exception for an NVML return code."""
    said = f"{call}: {text} (NVML error {code})"

    def diagnostic(kind: str, explanation: str) -> Diagnostic:
        return Diagnostic(kind, f"{explanation}; {said}", call=call, code=code)

    if code in _ABSENT:
        return AbsentError(diagnostic("absent", "this is not supported here"))
    if code == _LIBRARY_NOT_FOUND:
        explanation = "libnvidia-ml.so.1, NVIDIA's management library, is not on this host or in this container"
        return LostError(diagnostic(diagnostics.LIBRARY_MISSING, explanation))
    if code in (_DRIVER_NOT_LOADED, _LIB_RM_VERSION_MISMATCH):
        return LostError(
            diagnostic(diagnostics.DRIVER_NOT_LOADED, "the NVIDIA driver is not loaded, or another than the library's")
        )
    if code in (_GPU_IS_LOST, _RESET_REQUIRED):
        return LostError(
            diagnostic(diagnostics.GPU_LOST, "the GPU is lost: it has fallen off the bus or needs a reset")
        )
    if code == _NO_PERMISSION:
        return FailedError(diagnostic(diagnostics.NO_PERMISSION, "this user may not read it"))
    return FailedError(diagnostic(diagnostics.UNKNOWN_ERROR, "the driver gave no answer"))
