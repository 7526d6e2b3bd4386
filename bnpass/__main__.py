"""``python -m bnpass`` is the ``bnpass`` command."""

import sys

from bnpass.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
