"""LoRAs: read from any family's file, applied beside the weights, merged into them, written."""

from .apply import LoraStack, lora_applied
from .file import Lora, load_lora
from .match import LoraMatch, match_lora
from .merge import merge_loras

__all__ = [
    "Lora",
    "LoraMatch",
    "LoraStack",
    "load_lora",
    "lora_applied",
    "match_lora",
    "merge_loras",
]
