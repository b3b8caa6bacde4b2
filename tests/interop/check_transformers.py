"""Load an exported folder in transformers through Optimum and GPTQModel, and answer the questions.

    python check_transformers.py FOLDER QUESTIONS.json [--dtype float32] [--backend auto]

Prints one JSON object: versions, the kind of the packed linears, the prompt's and the answer's token ids for
each question of make_questions.py, and the largest difference of the logits from those of the same model with
its weights unpacked here, relative to the largest logit. Needs torch, torchvision, transformers, optimum and
gptqmodel, not pixedge. check_pixedge.py compares the output.
"""

import argparse
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import prompts
import torch
from result import Result
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GPTQConfig,
    LlavaForConditionalGeneration,
)

PACKAGES = ("torch", "torchvision", "transformers", "optimum", "gptqmodel")


def unpack(packed: dict[str, torch.Tensor]) -> torch.Tensor:
    """Give weight [out, in] of an AutoGPTQ linear, as its definition says: scale * (q - (zero + 1))."""
    nibbles = torch.arange(0, 32, 4, dtype=torch.int32)
    q = (packed["qweight"][:, None, :] >> nibbles[None, :, None] & 15).flatten(0, 1)  # [in, out]
    zeros = (packed["qzeros"][:, :, None] >> nibbles & 15).flatten(1) + 1  # [groups, out]
    group = packed["g_idx"].long()
    return (packed["scales"].float()[group] * (q - zeros[group])).T.contiguous()


def unpacked_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read all shards and replace each packed linear by its weight; float32."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("model-*.safetensors")):
        tensors |= load_file(shard)
    linears = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    for linear in linears:
        parts = {kind: tensors.pop(f"{linear}.{kind}") for kind in ("qweight", "qzeros", "scales", "g_idx")}
        tensors[f"{linear}.weight"] = unpack(parts)
    return {name: tensor.float() for name, tensor in tensors.items()}


def dense_model(folder: Path, dtype: torch.dtype) -> Any:
    """Load the same folder's configuration with dense weights."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model, info = LlavaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=unpacked_tensors(folder), dtype=dtype, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def for_processor(messages: list[prompts.Message]) -> list[prompts.Message]:
    """Replace each picture by a placeholder; the processor takes the pictures beside the text."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [{"type": "image"} if "image_url" in block else block for block in content]
        turns.append(message | {"content": content})
    return turns


@torch.inference_mode()
def main() -> None:
    """Run the check and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--backend", default="auto", help="GPTQModel's kernel, gptq_torch for example")
    arguments = parser.parse_args()
    output = Result()
    dtype = getattr(torch, arguments.dtype)

    processor = AutoProcessor.from_pretrained(arguments.folder)
    model, info = AutoModelForImageTextToText.from_pretrained(
        arguments.folder,
        dtype=dtype,
        device_map="cpu",
        output_loading_info=True,
        # Only the choice of kernel is taken from here; everything else comes from the folder.
        quantization_config=GPTQConfig(bits=4, backend=arguments.backend),
    )
    model.eval()
    dense = dense_model(arguments.folder, dtype)

    answers, differences = [], []
    for messages in prompts.read(arguments.questions):
        chat = processor.apply_chat_template(for_processor(messages), add_generation_prompt=True)
        inputs = processor(
            text=chat, images=prompts.images(messages), add_special_tokens=False, return_tensors="pt"
        )
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        prompt = inputs["input_ids"][0]
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=prompts.MAX_TOKENS)[0]
        answer = ids[len(prompt) :].tolist()
        answers.append({"prompt": prompt.tolist(), "answer": answer})

        found, expected = (side(**inputs).logits.float() for side in (model, dense))
        assert found.isfinite().all() and expected.isfinite().all(), "the logits are not finite"
        differences.append(float((found - expected).abs().max() / expected.abs().max()))

    kinds = Counter(type(module).__name__ for module in model.modules() if hasattr(module, "qweight"))
    result = {
        "engine": "transformers",
        "versions": {package: version(package) for package in PACKAGES},
        "dtype": arguments.dtype,
        "backend": arguments.backend,
        "packed_linears": dict(kinds),
        "missing_tensors": sorted(info["missing_keys"]),
        "unexpected_tensors": sorted(info["unexpected_keys"]),
        "max_relative_logits_difference": max(differences),
        "answers": answers,
    }
    output.write(result)


if __name__ == "__main__":
    main()
