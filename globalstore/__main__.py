"""``python -m globalstore``: the command line."""

import sys

from globalstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
