"""Random checkpoints in real shapes, streamed to disk: to test and time what needs no sense.

    python -m pixedge_export.synthetic --like pixtral-12b --layers 2 OUT

Weights are normal with a few input channels eight times as large, so that quantisation has something to do.
"""

import argparse
import dataclasses
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import mistral_common
import torch
from torch import Tensor

from pixedge.config import HF_FILE, PARAMS_FILE, ModelConfig
from pixedge.known_shapes import PIXTRAL_12B as PIXTRAL_12B
from pixedge.tensor_shapes import expected_shapes
from pixedge_export.canonical import rotary_heads, to_interleaved, to_mistral_name
from pixedge_export.checkpoint import Layout
from pixedge_export.safetensors_writer import TensorSpec, stream_tensors
from pixedge_export.tekken import cut_tekken
from pixedge_export.writer import write_json

SHAPES = {"pixtral-12b": PIXTRAL_12B}
OUTLIER_SHARE = 1 / 256
OUTLIER_FACTOR = 8.0
TEKKEN = "tekken_240911.json"
SPECIAL_TOKENS = 1000


def write_synthetic(folder: Path, config: ModelConfig, layout: Layout = "mistral", seed: int = 0) -> None:
    """Write a random bfloat16 checkpoint of ``config``'s shape, one tensor in memory at a time.

    Both layouts of one seed hold the same canonical tensors. The tokenizer is mistral_common's copy of
    Pixtral-12B's, cut where the vocabulary is smaller than its 131,072.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mistral = layout == "mistral"
    specs = {
        to_mistral_name(name) if mistral else name: TensorSpec(torch.bfloat16, shape)
        for name, shape in expected_shapes(config).items()
    }
    file = folder / ("consolidated.safetensors" if mistral else "model.safetensors")
    stream_tensors(file, specs, _stored(config, layout, seed))
    if mistral:
        write_json(folder / PARAMS_FILE, config.to_params())
    else:
        write_json(folder / HF_FILE, config.to_hf() | {"torch_dtype": "bfloat16"})
    write_tokenizer(folder / "tekken.json", config)


def _stored(config: ModelConfig, layout: Layout, seed: int) -> Iterator[Tensor]:
    """Yield the tensors in canonical order, query and key rows as the layout has them."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in expected_shapes(config).items():
        tensor = _draw(name, shape, generator)
        heads = rotary_heads(name, config) if layout == "mistral" else None
        yield tensor if heads is None else to_interleaved(tensor, heads)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw a bfloat16 tensor: norms are 1 and biases 0, all else normal over sqrt(inputs) with outliers."""
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=torch.bfloat16)
    weight = torch.randn(shape, generator=generator).mul_(0.5 / math.sqrt(math.prod(shape[1:])))
    outliers = torch.randperm(shape[1], generator=generator)[: max(1, int(shape[1] * OUTLIER_SHARE))]
    weight[:, outliers] *= OUTLIER_FACTOR
    return weight.to(torch.bfloat16)


def write_tokenizer(file: Path, config: ModelConfig) -> None:
    """Write Pixtral-12B's tokenizer, cut to the vocabulary of ``config`` where that is smaller."""
    source = Path(mistral_common.__file__).parent / "data" / TEKKEN
    if config.decoder.vocab_size == PIXTRAL_12B.decoder.vocab_size:
        shutil.copyfile(source, file)
    else:
        n_ranks = config.decoder.vocab_size - SPECIAL_TOKENS
        cut_tekken(source, n_ranks, file, config.vision.patch_size, config.vision.image_size)


def main() -> None:
    """Write one checkpoint as the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", choices=sorted(SHAPES), default="pixtral-12b")
    parser.add_argument("--layers", type=int, help="decoder layers (default: as many as the real model has)")
    parser.add_argument("--vision-layers", type=int, help="encoder layers (default: likewise)")
    parser.add_argument("--layout", choices=["mistral", "hf"], default="mistral")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = SHAPES[args.like]
    decoder = dataclasses.replace(config.decoder, n_layers=args.layers or config.decoder.n_layers)
    vision = dataclasses.replace(config.vision, n_layers=args.vision_layers or config.vision.n_layers)
    if args.out.is_file() or (args.out.is_dir() and any(args.out.iterdir())):
        sys.exit(f"{args.out} is not empty; name a new folder")
    write_synthetic(args.out, ModelConfig(decoder, vision), args.layout, args.seed)
    print(args.out)


if __name__ == "__main__":
    main()
