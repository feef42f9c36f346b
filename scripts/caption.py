"""`showattend caption`, from a clone."""

import sys

from showattend.commands.caption import main

if __name__ == "__main__":
    sys.exit(main())
