"""Which files of a repository a pull fetches: one layout with one copy of the weights, and the tokenizer."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pixedge.config import HF_FILE, PARAMS_FILE, ModelConfig
from pixedge.errors import CheckpointError
from pixedge.hub import Listing, RemoteFile, Repository
from pixedge.recognition import ADAPTER, check_model, quantised_with
from pixedge.terminal import size

TOKENIZER_FILE: Final = "tekken.json"
# A layout's configuration and the stem of its weights' names; the first that a repository has is taken.
LAYOUTS: Final[tuple[tuple[str, str], ...]] = ((PARAMS_FILE, "consolidated"), (HF_FILE, "model"))
# The repository that has everything, for those that have not.
COMPLETE: Final = "mistralai/Pixtral-12B-2409"
# Configuration and index are read into memory before anything is decided.
_MOST_JSON_BYTES: Final = 64 << 20
_WEIGHTS: Final = (".gguf", ".bin", ".pt", ".pth", ".safetensors", ".onnx", ".npz", ".h5")


@dataclass(frozen=True)
class Wanted:
    """The files to have, in the order in which they get their names; of some the contents are known.

    Configuration, index, tokenizer, weights: a folder that is not finished lacks weights.
    """

    files: tuple[RemoteFile, ...]
    contents: Mapping[str, bytes]


def choose(repository: Repository, listing: Listing, folder: Path) -> Wanted:
    """Choose the files of the best layout that the listing has; only small ones are read for it.

    The names are those that export opens, without any folder. Raises CheckpointError where the repository has
    no such layout, quantised weights, or no tokenizer (unless `folder` has one), ConfigError for an
    architecture that pixedge does not support, and what Repository.read raises.
    """
    repo_id = repository.repo_id
    config_name, weights = _find_layout(repository, listing)
    contents: dict[str, bytes] = {}
    _check_config(repo_id, config_name, _read_json(repository, listing, config_name, contents))
    files = [listing.files[config_name]]
    stem = dict(LAYOUTS)[config_name]
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if index in listing.files:
        weights = _indexed(repo_id, index, _read_json(repository, listing, index, contents), weights)
        files.append(listing.files[index])
    elif whole in weights:
        weights = [whole]
    if TOKENIZER_FILE in listing.files:
        files.append(listing.files[TOKENIZER_FILE])
    elif not (folder / TOKENIZER_FILE).is_file():
        raise CheckpointError(
            f"{repo_id} has no {TOKENIZER_FILE}, without which there are no prompts; for Pixtral-12B pull "
            f"{COMPLETE}, which has it, or put the {TOKENIZER_FILE} of Mistral's own repository of this "
            f"model into {folder} first"
        )
    return Wanted((*files, *(listing.files[name] for name in sorted(weights))), contents)


def _find_layout(repository: Repository, listing: Listing) -> tuple[str, list[str]]:
    """Give a layout's configuration and the weights that may belong to it, or say what there is instead."""
    for config_name, stem in LAYOUTS:
        # Nothing but letters, digits, _, - and dots: such a name stays in its folder on every system.
        weights = [
            name for name in listing.files if re.fullmatch(rf"{stem}[\w.-]*\.safetensors", name, re.ASCII)
        ]
        if config_name in listing.files and weights:
            return config_name, weights
    if HF_FILE in listing.files:
        _refuse(repository.repo_id, HF_FILE, _read_json(repository, listing, HF_FILE, {}))
    if ADAPTER in listing.files:
        raise CheckpointError(
            f"{repository.repo_id} holds a LoRA adapter ({ADAPTER}) without the weights that it adapts; "
            "merge it into them with peft (merge_and_unload, save_pretrained) and export the merged folder"
        )
    raise CheckpointError(
        f"{repository.repo_id} has neither {PARAMS_FILE} with consolidated*.safetensors nor {HF_FILE} with "
        f"model*.safetensors, but {_summary(listing.files)}; pull a repository in one of these layouts, such "
        f"as {COMPLETE}"
    )


def _summary(names: Iterable[str]) -> str:
    """List what a repository has, weights first and no more than six names."""
    ordered = sorted(names, key=lambda name: (not name.endswith(_WEIGHTS), name))
    shown = [name if name.isprintable() else ascii(name) for name in ordered[:6]]
    return (", ".join(shown) or "no files") + (f" and {len(ordered) - 6} more" if len(ordered) > 6 else "")


def _read_json(repository: Repository, listing: Listing, name: str, contents: dict[str, bytes]) -> object:
    file = listing.files[name]
    if file.size > _MOST_JSON_BYTES:
        raise CheckpointError(f"{name} of {repository.repo_id} has {size(file.size)}; pull another revision")
    contents[name] = repository.read(file, listing.commit)
    try:
        data: object = json.loads(contents[name])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} of {repository.repo_id} is not valid JSON ({error}); pull another revision"
        ) from error
    return data


def _check_config(repo_id: str, name: str, config: object) -> None:
    """Refuse what export would refuse, before the weights are fetched."""
    _refuse(repo_id, name, config)
    read = ModelConfig.from_params if name == PARAMS_FILE else ModelConfig.from_hf
    read(config, f"{repo_id}: {name}")  # type: ignore[arg-type]  # what is no object is an error that it raises


def _refuse(repo_id: str, name: str, config: object) -> None:
    """Refuse another model, and weights that are quantised already."""
    check_model(config, f"{repo_id}: {name}")
    if not (method := quantised_with(config)):
        return
    remedy = "pull the 16-bit original"
    if method == "GPTQ":
        remedy = f"fetch it with hf download and give the folder to pixedge import, or {remedy}"
    raise CheckpointError(f"{repo_id} holds weights that are quantised already ({method}, {name}); {remedy}")


def _indexed(repo_id: str, name: str, index: object, weights: list[str]) -> list[str]:
    """Give the weights files that an index names, all of which must be in the listing."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{repo_id}: {name} has no weight_map from tensors to files; pull another revision"
        )
    named = {str(file) for file in weight_map.values()}
    if absent := sorted(named - set(weights)):
        raise CheckpointError(f"{repo_id} lacks {absent[0]!a}, which its {name} names; pull another revision")
    return list(named)
