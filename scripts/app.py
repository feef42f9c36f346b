"""`showattend app`, from a clone."""

import sys

from showattend.commands.app import main

if __name__ == "__main__":
    sys.exit(main())
