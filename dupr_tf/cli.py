"""`dupr-tf <command>`: parse, check, call. TensorFlow is imported only once the configuration is known to be right."""

from __future__ import annotations

import codecs
import io
import logging
import os
import select
import shutil
import signal
import sys

from dupr_tf import __version__
from dupr_tf.errors import RunFailed, RunInterrupted, UserError, reporting_failed_writes
from dupr_tf.quiet import silence_libraries
from dupr_tf.text import replace_unencodable

NARROWEST = 40  # columns: tyro never ends where a word has no room


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0, or what the command returns; for an error, its `code` (see `dupr_tf.errors`); 130 for Ctrl-C; 141 where the
    reader of the output has ended, as in `| head -1`. Any other exception is a defect of this package and keeps its
    traceback.
    """
    try:
        prepare_streams()
        code = run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not nobody_reads(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:  # RunInterrupted, whose state is saved, or Ctrl-C anywhere else
        message = str(error) if isinstance(error, RunInterrupted) else "interrupted"
        print(f"dupr-tf: {message}", file=sys.stderr)
        return getattr(error, "code", 128 + signal.SIGINT)
    except (UserError, RunFailed) as error:
        for line in map(str, getattr(error, "errors", [error])):
            print(f"dupr-tf: error: {line}", file=sys.stderr)
        return error.code


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; errors are raised."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments == ["--version"]:
        print(f"dupr-tf {__version__}")
        return 0
    from dupr_tf.commands.checks import has_gpu

    if "--verbose" in arguments:
        arguments = [word for word in arguments if word != "--verbose"]
    else:
        silence_libraries(has_gpu())
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, whatever a notebook or another project has set
    from dupr_tf.commands.parsing import overview, parse

    if arguments[:1] in ([], ["--help"], ["-h"]):
        print(overview())
        return 0 if arguments else UserError.code
    command, overrides = parse(arguments)
    with reporting_failed_writes(getattr(command, "output", None) or "the output"):
        return command.run(overrides) or 0


def prepare_streams() -> None:
    """Makes the standard streams take any text: closed ones, an ASCII terminal, and one that is too narrow for help."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: without this, the next file that is opened would get what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    codecs.register_error("dupr_tf", replace_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dupr_tf")
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)


def nobody_reads(descriptor: int) -> bool:
    """Returns True if a descriptor is that of a pipe whose reader has ended."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
