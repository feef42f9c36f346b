"""`showattend average-checkpoints`, from a clone."""

import sys

from showattend.commands.average_checkpoints import main

if __name__ == "__main__":
    sys.exit(main())
