"""Control of singular values in the trainers of other packages; each of these modules needs its own package.

`svdctl.integrations.lightning.Control` is a callback for `lightning.Trainer`, `svdctl.integrations.pytorch_lightning`
has the same for the package of that name, and `svdctl.integrations.transformers` for `transformers.Trainer`.
"""

from importlib import import_module
from types import ModuleType

__all__ = ["lightning", "pytorch_lightning", "transformers"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"svdctl.integrations.{name}")
    raise AttributeError(f"module 'svdctl.integrations' has no attribute {name!r}")
