"""Defines the errors of this package. The class of an error determines the exit code of a command.

| class | exit code | meaning |
|---|---|---|
| UserError | 2 | an input of the user is wrong; nothing was started |
| RunFailed | 1 | a command had started and cannot finish |
| WorkerLost | 75 | a worker has left a run of several; sysexits.h has 75 as "try again" |
| RunInterrupted | 128 + signal | a signal stopped a run after its state was saved |

Memory or threads that ran out give exit code 1. Any other exception is a defect of this package and keeps its
traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """Reports a wrong input: its name, the problem and the fix, printed as `field: problem fix` on one line.

    Args:
        field: the user's name of the input: a config field ("train.epochs"), a flag ("--data") or an argument's name.
            None if the problem names it.
        problem: a sentence. "Expected …, received …" is for wrong values only.
        fix: a sentence that says what to do.

    Attributes:
        errors: a list of this error alone, or the errors of a `UserErrors`.
        fields: the `field` of each of `errors`.
    """

    code = 2

    def __init__(self, field: str | None, problem: str, fix: str = ""):
        self.field, self.problem, self.fix = field, problem, fix
        where = f"{field}: " if field else ""
        super().__init__(where + " ".join(part for part in (problem, fix) if part))

    def __reduce__(self):  # workers send errors; by default an exception is unpickled from its message alone
        return type(self), (self.field, self.problem, self.fix)

    @property
    def errors(self) -> tuple[UserError, ...]:
        return (self,)

    @property
    def fields(self) -> tuple[str | None, ...]:
        return tuple(error.field for error in self.errors)


class UserErrors(UserError):
    """Reports several mistakes together, each printed on a separate line.

    Args:
        errors: at least one error. A nested `UserErrors` is replaced by its errors.
    """

    def __init__(self, errors: Iterable[UserError]):
        self._errors = tuple(one for error in errors for one in error.errors)
        first = self._errors[0]
        super().__init__(first.field, first.problem, first.fix)
        self.args = ("\n".join(map(str, self._errors)),)

    def __reduce__(self):
        return type(self), (self._errors,)

    @property
    def errors(self) -> tuple[UserError, ...]:
        return self._errors


class RunFailed(Exception):
    """Reports that a command had started and cannot finish. Files saved before are complete."""

    code = 1


class Diverged(RunFailed):
    """Reports a loss that is not finite."""


class WorkerLost(RunFailed):
    """Reports that a worker has left a run of several workers. The same commands resume the run."""

    code = 75


class RunInterrupted(KeyboardInterrupt):
    """Reports that a signal stopped a run after its state was saved.

    Args:
        number: number of the signal.
        step: the last step taken; a checkpoint holds it.
    """

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}. Checkpoint {step} is saved. Run the same command again to resume.")
        self.number, self.step = number, step

    @property
    def code(self) -> int:
        return 128 + self.number


def raise_all(errors: list[UserError]) -> None:
    """Raises the errors of a list together. Does nothing if the list is empty."""
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)


def is_disk_full(error: BaseException | None) -> bool:
    """Returns True if an error, or its cause, is that of a full disk or quota.

    TensorFlow and h5py keep only the text of the system's error, so the text is compared too.
    """
    while error is not None:
        if getattr(error, "errno", None) in DISK_FULL or any(os.strerror(n) in str(error) for n in DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_memory(error: BaseException | None) -> bool:
    """Returns True if an error, or its cause, says that memory or threads ran out, in Python or in TensorFlow."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
            return True
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def reporting_failed_writes(output: str | Path) -> Iterator[None]:
    """Turns a system error, such as a full disk or a missing folder, into a `RunFailed` that names the file.

    Errors of pipes, connections and processes are not converted.

    Args:
        output: file or folder to name if the error names none.
    """
    try:
        yield
    except (ConnectionError, ChildProcessError, TimeoutError):  # BrokenPipeError is a ConnectionError
        raise
    except OSError as error:
        raise RunFailed(failed_write(error, output)) from error


def failed_write(error: OSError, output: str | Path) -> str:
    """Returns the message for a system error: the file, the reason, and the fix."""
    path = error.filename2 or error.filename or output  # the second name is that of a file to rename into place
    name = str(path).encode("unicode_escape", "surrogatepass").decode()
    if error.errno in DISK_FULL:
        return f"The disk is full: {name} could not be written. Free some space and run the same command again."
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return f"{name} could not be written or read: {reason}. Check the folder and run the same command again."
