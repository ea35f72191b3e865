"""`dupr-tf <command>`: parse, check, call. TensorFlow is imported only once the configuration is known to be right."""

from __future__ import annotations

import logging
import os
import signal
import sys

import tyro

from dupr_tf.commands import COMMANDS, CONFIGURED
from dupr_tf.commands.report import BY_SIGNAL, REFUSED, USER_ERROR
from dupr_tf.config import ConfigError
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.training import failures
from dupr_tf.weights.formats import ExportError

DESCRIPTION = "Pre-train object-detection backbones on unlabelled images (DUPR), fine-tune detectors, export weights."


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0; 2 where the user's input is wrong, 1 where a run fails or its result is refused.

    A run that SIGTERM or SIGINT ended returns 143 or 130; one that lost a worker, 75.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("absl", "tensorflow"):
        logging.getLogger(library).setLevel(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's C++ chatter; what matters is raised
    try:
        arguments, overrides = split_overrides(arguments)
        if overrides and arguments[:1] not in [[name] for name in CONFIGURED]:
            raise ConfigError([f"{next(iter(overrides))}: only {', '.join(CONFIGURED)} take fields of a config"])
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments, prog="dupr-tf", description=DESCRIPTION, console_outputs=True,
        )  # fmt: skip
        return command.run(overrides) or 0
    except KeyboardInterrupt as error:  # of a run, which has saved its state, or of anything else
        print(f"dupr-tf: {error or 'interrupted'}", file=sys.stderr)
        return BY_SIGNAL + getattr(error, "number", signal.SIGINT)
    except UserError as error:
        for one in error.errors:
            print(f"dupr-tf: error: {one}", file=sys.stderr)
        return error.code
    except (ExportError, RunFailed, failures.RunFailed) as error:
        print(f"dupr-tf: error: {error}", file=sys.stderr)
        return getattr(error, "code", REFUSED)
    except ValueError as error:
        if not isinstance(error, ConfigError) and not str(error).startswith("Expected"):
            raise  # a defect of ours, not of the input
        for line in str(error).splitlines():
            print(f"dupr-tf: error: {line}", file=sys.stderr)
        return USER_ERROR


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
                raise ConfigError([f"{name}: expected a value after it, received none"])
            value = arguments[i]
            i += 1
        overrides[name] = value
    return rest, overrides


if __name__ == "__main__":
    sys.exit(main())
