"""Lets torchvision be imported beside a build of torch that its compiled operators do not fit.

Python imports this module by itself when it starts with this folder on PYTHONPATH, subprocesses included.
Resizing and normalising pictures needs none of torchvision's own operators (NMS, RoI pooling and so on), but
without them torchvision stops while it is imported, where it describes the shapes that they return. The
module that does so is then left empty.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType


class NoOperators(MetaPathFinder, Loader):
    """Stands in for the description of torchvision's operators where these are missing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Offer an empty module, or leave it to the other finders."""
        if fullname != "torchvision._meta_registrations":
            return None
        import torch

        # torchvision has tried to load them by now: it does so first of all
        return None if hasattr(torch.ops.torchvision, "nms") else spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


sys.meta_path.insert(0, NoOperators())
