"""LoRAs: read from any family's file, applied beside the weights, merged into them, written."""

from .apply import lora_applied
from .block_weights import BlockWeights
from .file import Lora, load_lora
from .match import LoraMatch, match_lora
from .merge import merge_loras
from .schedule import StrengthSchedule
from .use import LoraRegion, LoraStack, LoraUse, lora_uses

__all__ = [
    "BlockWeights",
    "Lora",
    "LoraMatch",
    "LoraRegion",
    "LoraStack",
    "LoraUse",
    "StrengthSchedule",
    "load_lora",
    "lora_applied",
    "lora_uses",
    "match_lora",
    "merge_loras",
]
