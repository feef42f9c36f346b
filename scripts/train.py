"""`showattend train`, from a clone."""

import sys

from showattend.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
