"""What a file or folder is that pixedge does not take, named as its publisher names it.

Every function returns None for what may be a Pixtral checkpoint. That one is read strictly afterwards (see
``pixedge.config``), so recognition errs on the side of saying nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixedge.errors import CheckpointError, ConfigError

ADAPTER = "adapter_config.json"
SERVED = "pixedge runs Pixtral-12B and models of its architecture, such as mistralai/Pixtral-12B-2409"

# Width, layers and FFN width of decoders, and the model that each belongs to without a vision encoder.
_TEXT_MODELS = {
    (4096, 32, 14336): "Mistral-7B",
    (4096, 36, 12288): "Ministral-8B-2410",
    (5120, 40, 14336): "Mistral-Nemo-12B",
    (5120, 40, 32768): "Mistral-Small-3 (24B)",
    (6144, 56, 16384): "Mistral-Small-2409 (22B)",
    (12288, 88, 28672): "Mistral-Large-2 (123B)",
}
# The same with an encoder whose patches are merged two by two.
_MERGING_MODELS = {
    (3072, 26, 9216): "Ministral-3-3B",
    (4096, 34, 14336): "Ministral-3-8B",
    (5120, 40, 16384): "Ministral-3-14B",
    (5120, 40, 32768): "Mistral-Small-3.1 or 3.2 (24B)",
    (12288, 88, 28672): "Mistral-Medium-3.5 (128B)",
}
_LARGE = (12288, 88, 28672)
_OTHER_TYPES = {
    "gemma3": "Gemma-3",
    "idefics2": "Idefics2",
    "idefics3": "Idefics3",
    "internvl": "InternVL",
    "llama": "Llama (text only)",
    "llama4": "Llama-4",
    "llava_next": "LLaVA-1.6",
    "llava_onevision": "LLaVA-OneVision",
    "mistral4": "Mistral-Small-4",
    "mixtral": "Mixtral (text only, a mixture of experts)",
    "mllama": "Llama-3.2-Vision",
    "paligemma": "PaliGemma",
    "pixtral": "the vision encoder of a Pixtral without its decoder",
    "qwen2": "Qwen2 (text only)",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen2_vl": "Qwen2-VL",
    "qwen3_vl": "Qwen3-VL",
    "smolvlm": "SmolVLM",
    "voxtral": "Voxtral (speech)",
}
_METHODS = {
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "modelopt": "NVIDIA ModelOpt",
}


def check_model(data: object, file: str | Path) -> None:
    """Raise ConfigError when the contents of a params.json or config.json describe another model."""
    if isinstance(data, Mapping) and (name := other_model(data)):
        raise ConfigError(f"{file}: this looks like {name}; {SERVED}")


def other_model(data: Mapping[str, Any]) -> str | None:
    """Return the name of a model that is no Pixtral-12B, with what gives it away, from either format."""
    return _of_params(data) if "dim" in data and "n_layers" in data else _of_hf(data)


def _of_params(data: Mapping[str, Any]) -> str | None:
    sizes = (data.get("dim"), data.get("n_layers"), data.get("hidden_dim"))
    encoder = data.get("vision_encoder")
    multimodal = data.get("multimodal")
    if data.get("moe"):
        return f"a mixture of experts of Mistral's ({_shape(sizes)})"
    if isinstance(multimodal, Mapping):
        inside = multimodal.get("vision_encoder_args") or multimodal.get("whisper_model_args")
        return f"a newer model of Mistral's ({_shape(sizes)}, multimodal)" if inside else None
    if encoder is None:
        return _text_model(sizes, "no vision_encoder")
    if not isinstance(encoder, Mapping):
        return None
    merge = encoder.get("spatial_merge_size") or 1
    if merge != 1 or encoder.get("mm_projector_id"):
        return _merging_model(sizes, bool(data.get("yarn")), "vision_encoder.spatial_merge_size")
    return _large(sizes)


def _of_hf(data: Mapping[str, Any]) -> str | None:
    kind = data.get("model_type")
    if "mm_vision_tower" in data:
        return "LLaVA-1.5 in its authors' own layout (mm_vision_tower)"
    text, vision = data.get("text_config"), data.get("vision_config")
    text = text if isinstance(text, Mapping) else {}
    vision = vision if isinstance(vision, Mapping) else {}
    if kind == "mistral3":
        sizes = _hf_sizes(text)
        yarn = text.get("model_type") == "ministral3"
        return _merging_model(sizes, yarn, 'model_type "mistral3"')
    if kind in ("mistral", "ministral", "ministral3"):
        return _text_model(_hf_sizes(data), f'model_type "{kind}"')
    if kind == "llava":
        return _llava(text, vision) if text and vision else None
    if isinstance(kind, str):
        name = _OTHER_TYPES.get(kind)
        return f'{name} (model_type "{kind}")' if name else f'a model of the type "{kind:.40}"'
    return None


def _llava(text: Mapping[str, Any], vision: Mapping[str, Any]) -> str | None:
    decoder = text.get("model_type", "llama")
    encoder = vision.get("model_type", "clip_vision_model")
    if (decoder, encoder) == ("llama", "clip_vision_model"):
        return f'LLaVA-1.5 (text_config.model_type "{decoder}", vision_config.model_type "{encoder}")'
    if decoder != "mistral":
        return f'a LLaVA with another decoder (text_config.model_type "{decoder!s:.40}")'
    if encoder != "pixtral":
        return f'a LLaVA with another vision encoder (vision_config.model_type "{encoder!s:.40}")'
    return _large(_hf_sizes(text))


def _hf_sizes(text: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return text.get("hidden_size"), text.get("num_hidden_layers"), text.get("intermediate_size")


def _text_model(sizes: tuple[Any, Any, Any], sign: str) -> str:
    name = _TEXT_MODELS.get(sizes) or _MERGING_MODELS.get(sizes)
    return f"{name or f'a Mistral model of {_shape(sizes)}'} (text only: {sign})"


def _merging_model(sizes: tuple[Any, Any, Any], yarn: bool, sign: str) -> str:
    if sizes == (5120, 40, 32768) and yarn:
        name = "Devstral-Small-2 (24B)"
    else:
        name = _MERGING_MODELS.get(sizes) or f"a Mistral-Small-3.1 or Ministral-3 of {_shape(sizes)}"
    return f"{name}, whose vision encoder merges patches ({sign}), which pixedge does not do"


def _large(sizes: tuple[Any, Any, Any]) -> str | None:
    if sizes != _LARGE:
        return None
    return (
        "Pixtral-Large (124B), whose weights take about 60 GiB in 4 bits, more than a card of 24 GiB holds, "
        "and whose tokenizer pixedge does not have"
    )


def _shape(sizes: tuple[Any, Any, Any]) -> str:
    return f"width {sizes[0]!s:.20}, {sizes[1]!s:.20} layers"


def quantised_with(data: object) -> str | None:
    """Return how a checkpoint's weights are quantised as its configuration says, None where it does not."""
    if not isinstance(data, Mapping):
        return None
    keys = ("quantization_config", "compression_config", "quantization")
    said = next((data[key] for key in keys if data.get(key)), None)
    if said is None:
        return None
    said = said if isinstance(said, Mapping) else {}
    if said.get("load_in_4bit") or said.get("load_in_8bit"):
        return _METHODS["bitsandbytes"]
    if "qformat_weight" in said:  # Mistral's layout
        return str(said["qformat_weight"]).upper()[:40]
    if said is data.get("quantization"):
        return "MLX"
    method = str(said.get("quant_method") or said.get("method") or "an unnamed method")
    return _METHODS.get(method.lower(), f"{method:.40}")


def check_folder(path: Path) -> None:
    """Raise CheckpointError for a file or folder that is of another kind than a checkpoint's folder."""
    if what := _other_folder(path) if path.is_dir() else _other_file(path):
        raise CheckpointError(f"{path} {what}")


def _other_file(file: Path) -> str | None:
    """Say what a path that is no folder is; None where it is not there."""
    if file.suffix.lower() == ".gguf" and file.is_file():
        return f"is a GGUF file, the format of llama.cpp, which pixedge does not read; {_ORIGINAL}"
    if file.is_file():
        return "is a file; give the folder that holds it, with the configuration and the tokenizer"
    return None


def _other_folder(folder: Path) -> str | None:
    names = {file.name for file in folder.iterdir()}
    if "pixedge.json" in names:
        return "was exported by pixedge already; ask it: pixedge run --model with this folder"
    if ADAPTER in names:
        return _adapter(folder / ADAPTER, bool(names & {"config.json", "params.json"}))
    if pointer := next(
        filter(_is_lfs_pointer, sorted((*folder.glob("*.safetensors"), *folder.glob("*.json")))), None
    ):
        name = pointer.name
        return f"was cloned without its large files: {name} is a pointer of Git LFS; run git lfs pull there"
    if names & {"config.json", "params.json"}:
        return None
    if any(name.lower().endswith(".gguf") for name in names):
        return f"holds GGUF files, the format of llama.cpp, which pixedge does not read; {_ORIGINAL}"
    if "snapshots" in names:
        inside = sorted(found for found in (folder / "snapshots").glob("*") if found.is_dir())
        where = inside[-1] if inside else folder / "snapshots" / "COMMIT"
        return f"is a repository in the hub's cache; give the folder of one commit: {where}"
    return None


def _is_lfs_pointer(file: Path) -> bool:
    """Tell whether a file, of safetensors or JSON, holds a large file's address in its place."""
    try:
        if not file.is_file() or file.stat().st_size > 1024:
            return False
        with file.open("rb") as opened:
            return opened.read(40).startswith(b"version https://git-lfs.github.com/")
    except OSError:
        return False


def _adapter(file: Path, beside_weights: bool) -> str:
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    of = f" for {base:.80}" if isinstance(base, str) and base else ""
    merge = "merge it into them with peft (merge_and_unload, save_pretrained) and give the merged folder"
    if beside_weights:
        return (
            f"holds a LoRA adapter{of} ({ADAPTER}) beside a model's configuration; pixedge would "
            f"leave the adapter out: {merge}, or move the adapter's files away"
        )
    return f"holds a LoRA adapter{of} ({ADAPTER}) without the weights that it adapts; {merge}"


_ORIGINAL = "give the original 16-bit checkpoint, such as mistralai/Pixtral-12B-2409"
