"""Stands before the installed torchmetrics in processes that tests start: as if there were none.

svdctl does not need it. lightning_fabric imports all of it, with transformers and scipy, only to compare its version,
which is half of the time in which a command starts.
"""

raise ImportError("tests/conftest.py leaves torchmetrics out")
