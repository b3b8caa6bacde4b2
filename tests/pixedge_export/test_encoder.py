"""The torch vision encoder against transformers' Pixtral and LLaVA projector, and pictures kept apart."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlavaConfig, MistralConfig, PixtralVisionConfig, PixtralVisionModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge_export.checkpoint import Layout, expected_shapes, open_checkpoint, save_checkpoint
from pixedge_export.encoder import VisionEncoder, encode

BOUND = 1e-4


@dataclass(frozen=True)
class Case:
    """A geometry and the picture sizes, in patches, to encode with it."""

    config: ModelConfig
    grids: tuple[tuple[int, int], ...]


def make_config(rng: random.Random) -> ModelConfig:
    patch, side = rng.choice((4, 8, 14, 16)), rng.randint(6, 16)
    heads, head_dim = rng.randint(1, 6), rng.choice((4, 8, 12, 20, 32, 64))
    vision = VisionConfig(
        dim=heads * head_dim,
        n_layers=rng.randint(1, 5),
        n_heads=heads,
        ffn_dim=rng.randint(5, 160),
        n_channels=3,
        patch_size=patch,
        image_size=patch * side,
        rope_theta=rng.choice((100.0, 10_000.0, 1e6)),
        norm_eps=1e-5,
        image_token_id=10,
        image_break_token_id=12,
        image_end_token_id=13,
    )
    decoder = DecoderConfig(
        dim=rng.randint(4, 96),
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        ffn_dim=16,
        vocab_size=32,
        norm_eps=1e-5,
        rope_theta=1e4,
        context=128,
    )
    return ModelConfig(decoder, vision)


def make_case(seed: int) -> Case:
    rng = random.Random(seed)
    config = make_config(rng)
    side = config.vision.image_size // config.vision.patch_size
    wide = (rng.randint(1, side - 1), side)
    grids = (wide, (wide[1], wide[0]), (rng.randint(1, side), rng.randint(1, side)))
    return Case(config, grids)


def randomise(module: nn.Module, seed: int) -> None:
    """Fill with weights large enough that attention, rotation and norms all matter to the output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.normal_(generator=generator)
            if parameter.ndim == 1:
                parameter.mul_(0.3).add_(1)
            else:
                parameter.mul_(parameter[0].numel() ** -0.5)


class Judge:
    """transformers' vision model and projector with an encoder's weights, loaded by the same names."""

    def __init__(self, config: ModelConfig, encoder: VisionEncoder) -> None:
        vision = PixtralVisionConfig(
            hidden_size=config.vision.dim,
            num_hidden_layers=config.vision.n_layers,
            num_attention_heads=config.vision.n_heads,
            intermediate_size=config.vision.ffn_dim,
            num_channels=3,
            patch_size=config.vision.patch_size,
            image_size=config.vision.image_size,
            hidden_act="silu",
            rope_parameters={"rope_type": "axial", "rope_theta": config.vision.rope_theta},
        )
        vision._attn_implementation = "eager"
        text = MistralConfig(hidden_size=config.decoder.dim)
        llava = LlavaConfig(
            vision_config=vision, text_config=text, vision_feature_layer=-1, projector_hidden_act="gelu"
        )
        self.both = nn.ModuleDict(
            {
                "vision_tower": PixtralVisionModel(vision),
                "multi_modal_projector": LlavaMultiModalProjector(llava),
            }
        )
        self.both.load_state_dict(encoder.state_dict(), strict=True)

    @torch.no_grad()
    def __call__(self, pictures: list[Tensor]) -> list[Tensor]:
        """Encode several pictures [3, H, W] as one padded batch, transformers' way."""
        tower = self.both["vision_tower"]
        sizes = [tuple(picture.shape[1:]) for picture in pictures]
        height, width = (max(side) for side in zip(*sizes, strict=True))
        batch = torch.zeros(len(pictures), 3, height, width)
        for row, picture in zip(batch, pictures, strict=True):
            row[:, : picture.shape[1], : picture.shape[2]] = picture
        features = tower(batch, image_sizes=torch.tensor(sizes)).last_hidden_state[0]
        embeddings = self.both["multi_modal_projector"](features)
        patch = tower.config.patch_size
        return list(embeddings.split([h // patch * (w // patch) for h, w in sizes]))


def pictures_for(case: Case, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    patch = case.config.vision.patch_size
    return [
        torch.randn(3, rows * patch, columns * patch, generator=generator) for rows, columns in case.grids
    ]


@pytest.mark.parametrize("seed", range(24))
def test_equals_transformers(seed: int) -> None:
    case = make_case(seed)
    encoder = VisionEncoder(case.config)
    randomise(encoder, seed)
    pictures = pictures_for(case, seed)
    for picture, expected in zip(pictures, Judge(case.config, encoder)(pictures), strict=True):
        found = encode(encoder, picture)
        assert found.shape == expected.shape
        assert expected.std() > 0.1  # else the bound would say little
        torch.testing.assert_close(found, expected, atol=BOUND, rtol=0)


def test_transposed_picture_gives_other_embeddings() -> None:
    """Rows and columns turn at different rates: a picture is not its mirror along the diagonal."""
    case = make_case(3)
    encoder = VisionEncoder(case.config)
    randomise(encoder, 3)
    patch = torch.randn(3, case.config.vision.patch_size, case.config.vision.patch_size)
    picture = torch.zeros(3, 4 * patch.shape[1], 4 * patch.shape[2])
    picture[:, : patch.shape[1], 2 * patch.shape[2] : 3 * patch.shape[2]] = patch
    mirrored = torch.zeros_like(picture)
    mirrored[:, 2 * patch.shape[1] : 3 * patch.shape[1], : patch.shape[2]] = patch
    found = encode(encoder, picture).unflatten(0, (4, 4))
    other = encode(encoder, mirrored).unflatten(0, (4, 4)).transpose(0, 1)
    assert (found - other).abs().max() > 1e-2


def test_one_pixel_reaches_every_patch() -> None:
    case = make_case(5)
    encoder = VisionEncoder(case.config)
    randomise(encoder, 5)
    picture = pictures_for(case, 5)[0]
    changed = picture.clone()
    changed[0, -1, -1] += 1
    difference = (encode(encoder, picture) - encode(encoder, changed)).abs().amax(1)
    assert (difference > 0).all()


@pytest.mark.parametrize("layout", ["mistral", "hf"])
def test_both_checkpoint_layouts_give_the_same_embeddings(layout: Layout, tmp_path: Path) -> None:
    """Mistral's layout stores query and key rows in another order; what comes out must not differ."""
    case = make_case(7)
    encoder = VisionEncoder(case.config)
    randomise(encoder, 7)
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(case.config).items()}
    tensors |= dict(encoder.state_dict())
    save_checkpoint(tmp_path, case.config, tensors, layout)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layout == layout
    loaded = VisionEncoder(checkpoint.config)
    loaded.load_state_dict({name: checkpoint.tensor(name) for name in loaded.state_dict()})
    for picture in pictures_for(case, 7):
        torch.testing.assert_close(encode(loaded, picture), encode(encoder, picture), atol=0, rtol=0)
