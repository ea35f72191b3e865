"""`dupr-tf <command>`: parse, check, call. TensorFlow is imported only once the configuration is known to be right."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys

import tyro

from dupr_tf.commands import COMMANDS, CONFIGURED
from dupr_tf.commands.checks import check_places
from dupr_tf.errors import RunFailed, UserError

DESCRIPTION = "Pre-train object-detection backbones on unlabelled images (DUPR), fine-tune detectors, export weights."


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0, or what the command returns; for an error, its `code` (see `dupr_tf.errors`); 130 for Ctrl-C; 141 where the
    reader of the output has ended, as in `| head -1`. Any other exception is a defect of this package and keeps its
    traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("absl", "tensorflow"):
        logging.getLogger(library).setLevel(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's C++ chatter; what matters is raised
    try:
        arguments, overrides = split_overrides(arguments)
        if overrides and arguments[:1] not in [[name] for name in CONFIGURED]:
            raise UserError(
                f"--{next(iter(overrides))}",
                "This command takes no fields of a config.",
                f"Only {', '.join(CONFIGURED)} do.",
            )
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments, prog="dupr-tf", description=DESCRIPTION, console_outputs=True,
        )  # fmt: skip
        check_places(command)
        code = command.run(overrides) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not nobody_reads(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:  # RunInterrupted, whose state is saved, or Ctrl-C anywhere else
        print(f"dupr-tf: {str(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "code", 128 + signal.SIGINT)
    except (UserError, RunFailed) as error:
        for line in map(str, getattr(error, "errors", [error])):
            print(f"dupr-tf: error: {line}", file=sys.stderr)
        return error.code


def nobody_reads(descriptor: int) -> bool:
    """Whether a descriptor is that of a pipe whose reader has ended."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--section.field value` and `--section.field=value` out of a command line.

    Returns:
        The other arguments, and {dotted field: text of its value}.
    """
    rest, overrides, i = [], {}, 0
    while i < len(arguments):
        word = arguments[i]
        i += 1
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in name or "/" in name:
            rest.append(word)
            continue
        if not equals:
            if i == len(arguments):
                raise UserError(word, "A value is missing after it.", f"Write {word} VALUE.")
            value = arguments[i]
            i += 1
        overrides[name] = value
    return rest, overrides


if __name__ == "__main__":
    sys.exit(main())
