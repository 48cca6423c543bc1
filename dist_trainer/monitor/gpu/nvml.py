"""NVML in this process: initialised once, asked through one door, and its errors sorted by what follows from them."""

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
# NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND, NO_DATA, ARGUMENT_VERSION_MISMATCH, DEPRECATED, INVALID_ARGUMENT: this
# device or this driver does not have it.
_ABSENT = {3, _NOT_FOUND, 13, 21, 25, 26, _INVALID_ARGUMENT}


class NvmlError(Exception):
    """A call that gave nothing. `diagnostic.code` is NVML's own number, None where it was not NVML that failed."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.message)
        self.diagnostic = diagnostic


class AbsentError(NvmlError):
    """The device or the driver does not have this: no use asking again, and nothing to be said."""


class FailedError(NvmlError):
    """This call failed; others may not."""


class LostError(NvmlError):
    """Nothing more can be had from this device."""


class Nvml:
    """NVML, initialised for this process and, once, again: after a fork, or where others have shut it down.

    `generation` counts initialisations: handles belong to the one that they were made in.
    """

    def __init__(self, say: Say) -> None:
        """Raises LostError when there is no library, no driver, or no permission."""
        self._say = say
        self.generation = 0
        self._pid = 0
        self._initialise()

    def ask(self, call: str, *arguments: Any, **named: Any) -> Any:
        """The answer of pynvml's function of that name. Raises AbsentError, FailedError or LostError."""
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
        """Ends this use of NVML; others in the process keep theirs. A fork's child leaves the parent's alone."""
        import pynvml

        if os.getpid() != self._pid:
            return
        self._pid = 0
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return

    def _initialise_again(self, reason: str, call: str) -> NoReturn:
        """Raises FailedError where that went well: the handle that was asked about belongs to the time before."""
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
    """What an error code of NVML means for the one who asked."""
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
