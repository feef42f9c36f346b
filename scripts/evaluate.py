"""`showattend evaluate`, from a clone."""

import sys

from showattend.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
