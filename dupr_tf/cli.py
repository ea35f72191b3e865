"""Runs `dupr-tf COMMAND`: parse, check, call. TensorFlow is imported only after the config has been checked."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import sys

from dupr_tf import __version__
from dupr_tf.errors import RunFailed, RunInterrupted, UserError, is_out_of_memory, reporting_failed_writes
from dupr_tf.light import save_memory
from dupr_tf.quiet import silence_libraries
from dupr_tf.streams import prepare_streams, silence
from dupr_tf.text import VisibleFormatter, one_line, visible

OUT_OF_MEMORY = (
    "Memory or threads ran out. Use a smaller batch, image size or model, or stop other programs, and run the same "
    "command again."
)
INTERRUPTED = "interrupted. Run the same command again."
NARROWEST = 40  # columns: tyro never ends if a word does not fit


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    The exit code is 0, or what the command returns. For an error it is its `code` (see `dupr_tf.errors`), for Ctrl-C
    130. It is 141 if the reader of the output has ended, as in `| head -1`. It is 1 if memory ran out. Any other
    exception is a defect of this package and keeps its traceback.
    """
    try:
        prepare_streams()
        if shutil.get_terminal_size().columns < NARROWEST:
            os.environ["COLUMNS"] = str(NARROWEST)
        code = run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not nobody_reads(sys.stdout.fileno()):
            raise
        silence(sys.stdout)  # for text that Python writes at its end
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:  # RunInterrupted after the state is saved, or Ctrl-C anywhere else
        complain([str(error) if isinstance(error, RunInterrupted) else INTERRUPTED])
        return getattr(error, "code", 128 + signal.SIGINT)
    except (UserError, RunFailed) as error:
        complain([f"error: {one}" for one in getattr(error, "errors", [error])])
        return error.code
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        complain([f"error: {OUT_OF_MEMORY} ({one_line(f'{type(error).__name__}: {error}', 120)})"])
        return RunFailed.code


def complain(messages: list[str]) -> None:
    """Prints messages on standard error, one line each; nothing if the terminal is gone."""
    with contextlib.suppress(OSError):
        for message in messages:
            print("dupr-tf:", visible(message).replace("\n", "\\n"), file=sys.stderr)


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; errors are raised."""
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if arguments == ["--version"]:
        print(f"dupr-tf {__version__}")
        return 0
    from dupr_tf.commands.checks import has_gpu

    if "--verbose" in arguments:
        arguments = [word for word in arguments if word != "--verbose"]
    else:
        silence_libraries(has_gpu())
    save_memory()
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, whatever backend a notebook or another project has set
    from dupr_tf.commands.parsing import overview, parse

    if arguments[:1] in ([], ["--help"], ["-h"]):
        print(overview())
        return 0 if arguments else UserError.code
    command, overrides = parse(arguments)
    with reporting_failed_writes(getattr(command, "output", None) or "the output"):
        return command.run(overrides) or 0


def nobody_reads(descriptor: int) -> bool:
    """Returns True if a descriptor is that of a pipe whose reader has ended."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
