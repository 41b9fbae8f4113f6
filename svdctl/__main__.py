"""`python -m svdctl`."""

import os
import sys

# `python -m` puts the current folder first, where anybody's torch.py may lie. That of svdctl itself stays.
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if not sys.flags.safe_path and os.path.abspath(sys.path[0]) == os.getcwd() != _HOME:
    del sys.path[0]

from svdctl.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
