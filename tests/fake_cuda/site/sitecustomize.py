"""Agreeable answers where pixedge looks at what a kernel computed: on the stand-in driver nothing is.

Python imports this at its start where its folder is on PYTHONPATH. Each patch calls what it replaces first,
so that every launch, copy and synchronisation is made; only the values are others:

- a check of all values of a GPU's tensor (``all``, ``equal``) succeeds;
- a chosen token, on the device or from logits, is one of ordinary text, and every 24th ends its answer.
"""

import importlib.abc
import importlib.machinery
import itertools
import sys
from types import ModuleType

LENGTH = 24
TEXT, END = 1097, 2
"""Ids of both tokenizers, the demo's and Pixtral-12B's: the letter a, and the end of an answer."""

_turns = itertools.count(1)


def _next_id():
    return TEXT if next(_turns) % LENGTH else END


def _torch(torch):
    every, equal = torch.Tensor.all, torch.equal

    def patched_all(tensor, *arguments, **options):
        found = every(tensor, *arguments, **options)
        return torch.ones((), dtype=torch.bool) if tensor.is_cuda and found.ndim == 0 else found

    def patched_equal(one, other):
        return equal(one, other) or (one.is_cuda and one.shape == other.shape)

    torch.Tensor.all, torch.equal = patched_all, patched_equal


def _choosing(module):
    read = module.Chooser.read

    def patched(chooser, told):
        ids, _ = read(chooser, told)
        ids[:] = [_next_id() for _ in ids]
        return ids, [-1.0] * len(ids)

    module.Chooser.read = patched


def _sampling(module):
    sample = module.Sampler.sample

    def patched(sampler, logits):
        agreeable = logits.new_zeros(logits.shape).float()
        agreeable[_next_id()] = 1.0
        return sample(sampler, agreeable)

    module.Sampler.sample = patched


PATCHES = {"torch": _torch, "pixedge.kernels.cuda.choosing": _choosing, "pixedge.sampling": _sampling}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are patched, and patches each once it has been executed."""

    def find_spec(self, name, path=None, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def patched(module: ModuleType) -> None:
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = patched
        return spec


sys.meta_path.insert(0, _Finder())
