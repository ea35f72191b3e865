"""Runs `dupr-tf` as `python -m dupr_tf`."""

import sys

from dupr_tf.cli import main

if __name__ == "__main__":
    sys.exit(main())
