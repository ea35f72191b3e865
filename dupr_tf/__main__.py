"""`python -m dupr_tf`, the same as `dupr-tf`."""

import sys

from dupr_tf.cli import main

if __name__ == "__main__":
    sys.exit(main())
