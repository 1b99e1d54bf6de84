"""Tiny random models with FLUX.2's shape, ours and diffusers'."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from flux_core.models.families import FLUX2_DEV, FLUX2_KLEIN, Family
from flux_core.models.flux2 import Flux2Config, Flux2Transformer
from flux_core.sampling.latents import image_ids, image_tokens, text_ids
from tests.tiny_models import HEAD, HEADS, HIDDEN, drawn_once, randomise

CONTEXT = 48
TOKENS = FLUX2_DEV.tokens
DEV = Flux2Config(context_in_dim=CONTEXT, hidden_size=HIDDEN, depth=2, depth_single_blocks=3)
#: Public models: their family, double and single blocks, and whether they read guidance.
MEMBERS: dict[str, tuple[Family, int, int, bool]] = {
    "FLUX.2 dev": (FLUX2_DEV, 8, 48, True),
    "FLUX.2 klein 4B": (FLUX2_KLEIN, 5, 20, False),
    "FLUX.2 klein 9B": (FLUX2_KLEIN, 8, 24, False),
    "FLUX.2 klein base": (FLUX2_KLEIN, 5, 20, False),
}


@drawn_once
def transformer(config: Flux2Config = DEV, seed: int = 0) -> Flux2Transformer:
    """Ours, of random float32 numbers."""
    model = cast(Flux2Transformer, randomise(Flux2Transformer(config), seed))
    model.requires_grad_(False)
    return model


@drawn_once
def diffusers_model(guidance: bool = True, double: int = 2, single: int = 3) -> Any:
    """diffusers', of random float32 numbers."""
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=CONTEXT,
        guidance_embeds=guidance,
    )
    return cast(nn.Module, randomise(model)).requires_grad_(False)


def inputs(batch: int = 2, height: int = 4, width: int = 3, text: int = 5) -> dict[str, Tensor]:
    """Arguments of a transformer's forward, float32."""
    generator = torch.Generator().manual_seed(7)
    tokens = image_tokens(height, width, geometry=TOKENS)
    return {
        "img": torch.randn(batch, tokens, 128, generator=generator),
        "img_ids": image_ids(height, width, geometry=TOKENS),
        "txt": torch.randn(batch, text, CONTEXT, generator=generator),
        "txt_ids": text_ids(text, TOKENS),
        "timesteps": torch.linspace(0.3, 0.9, batch),
        "guidance": torch.full((batch,), 4.0),
    }


def to_diffusers(kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same arguments under diffusers' names."""
    names = {"img": "hidden_states", "txt": "encoder_hidden_states", "timesteps": "timestep"}
    return {names.get(name, name): value for name, value in kwargs.items()}


@drawn_once
def diffusers_vae(decoder: tuple[int, ...] | None = None) -> Any:
    """diffusers' autoencoder of FLUX.2, of random float32 numbers and statistics."""
    from diffusers import AutoencoderKLFlux2

    model = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        decoder_block_out_channels=decoder,
        layers_per_block=1,
        norm_num_groups=8,
    )
    model = cast(Any, randomise(model))
    generator = torch.Generator().manual_seed(3)
    model.bn.running_mean.copy_(torch.randn(128, generator=generator))
    model.bn.running_var.copy_(torch.rand(128, generator=generator) + 0.2)
    return model


def their_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) to standardised latents (B, 128, H/16, W/16), as diffusers' pipelines
    make them."""
    z = vae.encode(pixels).latent_dist.mean
    batch, channels, height, width = z.shape
    z = z.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    z = z.reshape(batch, 4 * channels, height // 2, width // 2)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return (z - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation


def their_pixels(vae: Any, latents: Tensor) -> Tensor:
    """Inverse of ``their_latents``, by the decoder."""
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    z = latents * deviation + vae.bn.running_mean.view(1, -1, 1, 1)
    batch, channels, height, width = z.shape
    z = z.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return vae.decode(z.reshape(batch, channels // 4, 2 * height, 2 * width)).sample


#: What a chat's prompt becomes, in the notation of Hugging Face's templates.
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
MISTRAL_CHAT = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content[0].text }}"
    "[/SYSTEM_PROMPT]{% else %}[INST]{{ m.content[0].text }}[/INST]{% endif %}{% endfor %}"
)
#: Sizes of tiny language models by ``transformers``' names.
QWEN_SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 29,
    "head_dim": 128,
}
MISTRAL_SIZES = QWEN_SIZES | {"hidden_size": 288, "num_hidden_layers": 31}


def language_tokenizer(chat: str, marks: tuple[str, ...], pad: str, side: str) -> Any:
    """A tokenizer of single bytes, with the marks of a language model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(marks))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, padding_side=side, chat_template=chat
    )


def qwen_tokenizer() -> Any:
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
    return language_tokenizer(QWEN_CHAT, marks, "<|endoftext|>", "right")


def mistral_tokenizer() -> Any:
    marks = ("<s>", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]")
    return language_tokenizer(MISTRAL_CHAT, marks, "<pad>", "left")


@drawn_once
def qwen_model() -> Any:
    """transformers' Qwen3, of random float32 numbers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**QWEN_SIZES, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=False)
    return cast(Any, randomise(Qwen3ForCausalLM(config), deviation=0.2))


@drawn_once
def mistral_model() -> Any:
    """transformers' Mistral, of random float32 numbers."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        **MISTRAL_SIZES,
        rope_theta=1e9,
        rms_norm_eps=1e-5,
        sliding_window=None,
        tie_word_embeddings=False,
    )
    return cast(Any, randomise(MistralForCausalLM(config)))
