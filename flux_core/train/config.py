"""What a training run is, every field checked before anything loads.

[model]  [lora]  [[data]]  [objective]  [optimizer]  [samples]  [validation]  [offload]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..bounds import MOST_SEED, MOST_STEPS, check_number
from ..errors import ConfigError
from ..files import below
from ..lora.save import FORMATS
from ..offload import OffloadPolicy
from ..offload.policy import MODES
from ..quant import PRECISIONS
from ..sampling.sigmas import SHIFTS
from ..sampling.sizes import check_size

TIMESTEPS = ("uniform", "sigmoid", "logit_normal", "shift", "resolution_shift")
WEIGHTINGS = ("none", "sigma_sqrt", "cosmap", "bell")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy")
SCHEDULES = ("constant", "linear", "cosine")
ON_FAULT = ("skip", "refuse")
ON_EMPTY = ("use", "skip", "refuse")
#: Fields of ``ModelConfig`` that name a file or a folder.
MODEL_FILES = ("transformer", "clip_l", "t5", "language_model", "vae", "tokenizers")


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` for a value that is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def check_range(value: float, name: str, low: float, high: float | None = None) -> None:
    """Raise ``ConfigError`` for a value outside of [low, high], or below where high is None."""
    check_number(value, name, low, high, error=ConfigError)


@dataclass(frozen=True)
class ModelConfig:
    """Files of the base model; all empty is the pocket model that FluxFit ships.

    FLUX.1 reads prompts by ``clip_l`` and ``t5``, Chroma by ``t5``, FLUX.2 by a ``language_model``.
    """

    transformer: str = ""
    clip_l: str = ""
    t5: str = ""
    language_model: str = ""
    vae: str = ""
    tokenizers: str = ""
    precision: str = "fp8_scaled"
    text_precision: str = "fp8_scaled"

    def __post_init__(self) -> None:
        precisions = (*PRECISIONS, "as_stored")
        check_choice(self.precision, "model.precision", precisions)
        check_choice(self.text_precision, "model.text_precision", precisions)
        if self.precision == "fp16":
            raise ConfigError(
                "model.precision is 'fp16', in which gradients overflow: take bf16, fp32 or one "
                "byte a weight"
            )
        files = (self.transformer, self.vae, self.t5 or self.language_model)
        if any((*files, self.clip_l)) and not all(files):
            raise ConfigError(
                "model needs transformer, vae and what reads prompts (clip_l and t5 of FLUX.1, t5 "
                "of Chroma, language_model of FLUX.2), or none of them"
            )


@dataclass(frozen=True)
class LoraConfig:
    """``alpha`` 0 is the rank. ``targets``: kinds of layers, or patterns of native names.
    ``formats``: in which names the file is written."""

    rank: int = 16
    alpha: float = 0.0
    targets: tuple[str, ...] = ("attention", "mlp")
    formats: tuple[str, ...] = ("diffusers", "kohya")
    ema: float = 0.0

    def __post_init__(self) -> None:
        check_range(self.rank, "lora.rank", 1, 4096)
        check_range(self.alpha, "lora.alpha", 0, 1e6)
        check_range(self.ema, "lora.ema", 0, 0.99999)
        if not self.targets or not self.formats:
            raise ConfigError("lora.targets and lora.formats want at least one entry each")
        for format in self.formats:
            check_choice(format, "lora.formats", FORMATS)

    @property
    def strength(self) -> float:
        """Alpha as it is written: the LoRA counts alpha / rank times."""
        return self.alpha or float(self.rank)


@dataclass(frozen=True)
class DataConfig:
    """A folder of pictures.

    ``metadata``: a .csv (``file_name``, ``text``) or .jsonl file in it; else captions are .txt
    files beside the pictures. ``resolutions``: squares whose area a picture is brought to, keeping
    its shape in steps of ``step`` pixels. ``trigger`` goes before every caption. ``masks``:
    pictures ``NAME.mask.png`` or ``NAME-masklabel.png`` say where to learn, white for all.
    """

    folder: str = ""
    metadata: str = ""
    repeats: int = 1
    resolutions: tuple[int, ...] = (512,)
    step: int = 64
    max_aspect: float = 2.0
    trigger: str = ""
    masks: bool = True
    broken: str = "refuse"
    empty_captions: str = "refuse"

    def __post_init__(self) -> None:
        if not self.folder:
            raise ConfigError("data.folder is missing: which pictures?")
        check_range(self.repeats, "data.repeats", 1, 100_000)
        check_range(self.max_aspect, "data.max_aspect", 1, 8)
        if self.step < 16 or self.step % 16:
            raise ConfigError(f"data.step is {self.step}, expected a multiple of 16")
        if not self.resolutions:
            raise ConfigError("data.resolutions is empty, expected sides in pixels such as 512")
        for side in self.resolutions:
            check_range(side, "data.resolutions", self.step, 4096)
        check_choice(self.broken, "data.broken", ON_FAULT)
        check_choice(self.empty_captions, "data.empty_captions", ON_EMPTY)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which noise levels are learned, and how much each counts.

    ``timesteps``: ``uniform``; ``sigmoid`` of a normal times ``scale``; ``logit_normal`` with
    ``mean`` and ``scale``; ``shift``, the same and then shifted by the factor ``shift``;
    ``resolution_shift``, shifted by the number of tokens as the model's family was (FLUX.2's shift
    is that of 50 steps). ``guidance`` is what guidance-distilled models are told, 1 for no
    distillation.
    """

    timesteps: str = "sigmoid"
    mean: float = 0.0
    scale: float = 1.0
    shift: float = 3.0
    weighting: str = "none"
    guidance: float = 1.0
    caption_dropout: float = 0.0
    mask_floor: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self.timesteps, "objective.timesteps", TIMESTEPS)
        check_choice(self.weighting, "objective.weighting", WEIGHTINGS)
        check_range(self.mean, "objective.mean", -100, 100)
        check_range(self.guidance, "objective.guidance", 0, 1000)
        check_range(self.scale, "objective.scale", 1e-3, 100)
        check_range(self.shift, "objective.shift", 1e-3, 100)
        check_range(self.caption_dropout, "objective.caption_dropout", 0, 1)
        check_range(self.mask_floor, "objective.mask_floor", 0, 1)


@dataclass(frozen=True)
class OptimizerConfig:
    """``warmup`` and the run's length are counted in steps of the optimizer; one takes
    ``accumulation`` batches. Gradients are clipped to the norm ``clip``; 0 clips nothing."""

    name: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    warmup: int = 0
    accumulation: int = 1
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self.name, "optimizer.name", OPTIMIZERS)
        check_choice(self.schedule, "optimizer.schedule", SCHEDULES)
        check_range(self.learning_rate, "optimizer.learning_rate", 0, 10)
        check_range(self.weight_decay, "optimizer.weight_decay", 0, 1000)
        check_range(self.warmup, "optimizer.warmup", 0)
        check_range(self.accumulation, "optimizer.accumulation", 1, 100_000)
        check_range(self.clip, "optimizer.clip", 0)
        for beta in self.betas:
            check_range(beta, "optimizer.betas", 0, 0.99999)


@dataclass(frozen=True)
class SamplesConfig:
    """Pictures that are drawn ``every`` so many steps, 0 for none, and at the end."""

    prompts: tuple[str, ...] = ()
    every: int = 0
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 1.0
    guidance: float = 3.5
    seed: int = 0
    shift: str = "host"

    def __post_init__(self) -> None:
        check_choice(self.shift, "samples.shift", SHIFTS)
        try:
            check_size(self.width, self.height)
        except ValueError as error:
            raise ConfigError(f"samples: {error}") from error
        check_range(self.steps, "samples.steps", 1, MOST_STEPS)
        check_range(self.every, "samples.every", 0)
        check_range(self.cfg, "samples.cfg", 0, 1000)
        check_range(self.guidance, "samples.guidance", 0, 1000)
        check_range(self.seed, "samples.seed", 0, MOST_SEED)


@dataclass(frozen=True)
class ValidationConfig:
    """A loss at fixed noise and noise levels (``levels`` of them), ``every`` so many steps.

    On pictures of ``folder``, or on a ``share`` of the data that is then not trained on.
    """

    every: int = 0
    folder: str = ""
    share: float = 0.1
    levels: int = 4

    def __post_init__(self) -> None:
        check_range(self.every, "validation.every", 0)
        check_range(self.share, "validation.share", 0, 0.9)
        check_range(self.levels, "validation.levels", 1, 1000)


@dataclass(frozen=True)
class OffloadConfig:
    """Where weights and activations are; budgets in gigabytes, 0 for none."""

    mode: str = "auto"
    vram_budget: float = 0.0
    ram_budget: float = 0.0
    activations_on_host: bool = False

    def __post_init__(self) -> None:
        check_choice(self.mode, "offload.mode", MODES)
        check_range(self.vram_budget, "offload.vram_budget", 0, 100_000)
        check_range(self.ram_budget, "offload.ram_budget", 0, 100_000)

    @property
    def policy(self) -> OffloadPolicy:
        """The same in bytes."""

        def in_bytes(gigabytes: float) -> int | None:
            return int(gigabytes * 1e9) or None

        return OffloadPolicy(
            self.mode, vram_budget=in_bytes(self.vram_budget), ram_budget=in_bytes(self.ram_budget)
        )


@dataclass(frozen=True)
class TrainConfig:
    """One training run; its files go to ``output``/``name``.

    ``cache``: where latents and text embeddings are kept, by default beside the run; "none" keeps
    them in memory. ``save_every`` steps a checkpoint is written, of which ``keep`` are kept.
    """

    name: str = "lora"
    output: str = "output/training"
    cache: str = ""
    steps: int = 1000
    batch: int = 1
    seed: int = 0
    save_every: int = 250
    keep: int = 2
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: tuple[DataConfig, ...] = ()
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)

    def __post_init__(self) -> None:
        try:
            plain = len(below(Path(), self.name).parts) == 1 and not self.name.startswith(".")
        except ValueError:
            plain = False
        if not plain:
            raise ConfigError(f"name is {self.name!r}, expected a plain name for a folder")
        if not self.data:
            raise ConfigError("there is no [[data]]: which pictures?")
        check_range(self.steps, "steps", 1, 10_000_000)
        check_range(self.batch, "batch", 1, 4096)
        check_range(self.seed, "seed", 0, 2**63 - 1)
        check_range(self.save_every, "save_every", 0)
        check_range(self.keep, "keep", 1)

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        return Path(self.output) / self.name
