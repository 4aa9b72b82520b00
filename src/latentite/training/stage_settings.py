"""Settings of the stages `vae`, `ldm` and `gpt`: groups such as `vae_module`, and whole runs. No Lightning here."""

from __future__ import annotations

from dataclasses import dataclass, field

from latentite.data.sampler import AugmentationConfig, NoiseConfig
from latentite.nn.denoiser import DenoiserConfig
from latentite.nn.encoders import EncoderConfig
from latentite.nn.gpt.cell import LatticeDensity
from latentite.nn.gpt.circular import CoordDensity
from latentite.nn.gpt.network import SPACE_GROUP, GPTMode, check_size
from latentite.nn.gpt.size import GPTSize
from latentite.nn.lora import LoraConfig
from latentite.nn.vae import DecoderConfig, VAEConfig
from latentite.objectives.ldm import DiffusionConfig
from latentite.objectives.vae import CoordinateLoss, LossWeights
from latentite.symmetry.encode import FALLBACK_SYMPREC, SYMPREC
from latentite.training.conditions import ConditionModuleOptions, check_conditions
from latentite.training.ema import EMAConfig
from latentite.training.optim import OptimizerConfig, SchedulerConfig, SchedulerName
from latentite.training.settings import RunConfig


@dataclass(kw_only=True, slots=True)
class VAEModuleConfig(VAEConfig):
    """Everything about the VAE stage but its data: the `vae_module` group."""

    # slots=True makes new classes, so inherited fields are listed again where a reader looks for them
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    coordinate_loss: CoordinateLoss = CoordinateLoss.WRAPPED
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    latent_noise: float = 0.0
    """Noise on the latents that the decoder sees in training, as a fraction of their spread per channel; makes it
    forgive the errors of a diffusion model."""
    fa_dim: int = 0
    """Width of the per-atom features of `data.atom_features_path`; needed when `loss_weights.fa` is not 0."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    match_limit: int = 1000
    """At most so many validation crystals go through `StructureMatcher` (about 150 a second); 0 for none."""

    def __post_init__(self) -> None:
        VAEConfig.__post_init__(self)
        if not 0.0 <= self.latent_noise < 1.0:
            raise ValueError(f"latent_noise must be at least 0 and below 1, got {self.latent_noise}")
        if self.match_limit < 0:
            raise ValueError(f"match_limit must be 0 or more, got {self.match_limit}")
        if self.loss_weights.fa > 0 and self.fa_dim < 1:
            raise ValueError(f"fa_dim must be at least 1 when loss_weights.fa is not 0, got {self.fa_dim}")

    def architecture(self) -> VAEConfig:
        """The part that a checkpoint needs to build the network."""
        return VAEConfig(
            encoder=self.encoder,
            decoder=self.decoder,
            latent_dim=self.latent_dim,
            atom_type_predict=self.atom_type_predict,
        )


@dataclass(kw_only=True, slots=True)
class LDMModuleConfig:
    """Everything about the diffusion stage but its data: the `ldm_module` group."""

    vae_ckpt_path: str | None = None
    """Path or name (`latentite hub list`) of the VAE's checkpoint. Required, but for fine-tuning."""
    ldm_ckpt_path: str | None = None
    """Fine-tuning: path or name of the base, a checkpoint of this stage. VAE, statistics, denoiser and diffusion
    are then the base's, whatever the other settings say, and its conditions stay."""
    lora: LoraConfig | None = None
    """Fine-tuning: train low-rank adapters of the denoiser (and the condition module in full) instead of all
    weights; `{}` takes all defaults. An implementation of our own (`nn/lora.py`)."""
    freeze: list[str] = field(default_factory=list)
    """Fine-tuning: beginnings of the names of parameters that stay as they are, for example `denoiser.blocks.0`."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample_posterior: bool = True
    """Train on posterior draws; off, on posterior means."""
    condition_module: ConditionModuleOptions | None = None
    """Training of the conditions of `data.target_condition`; null for an unconditional model."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    latent_cache: int = 0
    """Augmented copies of the training set that are encoded once, before training, and kept on the device; each
    step then draws from them instead of encoding. 0: off. Without augmentation all copies are one."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.9999))

    def __post_init__(self) -> None:
        if not self.vae_ckpt_path and not self.ldm_ckpt_path:
            raise ValueError(
                "vae_ckpt_path must name the VAE's checkpoint (a path or a name of `latentite hub list`), "
                "or ldm_ckpt_path that of a base to fine-tune"
            )
        if not self.ldm_ckpt_path and (self.lora is not None or self.freeze):
            raise ValueError(
                f"ldm_ckpt_path must name the base to fine-tune where {'freeze' if self.lora is None else 'lora'} "
                "is given"
            )
        if self.latent_cache < 0:
            raise ValueError(f"latent_cache must be 0 (off) or more, got {self.latent_cache}")
        if self.latent_cache > 1 and not (self.augmentation.translate or self.augmentation.rotate):
            raise ValueError(
                f"latent_cache must be 0 or 1 without augmentation, where all copies are equal, got {self.latent_cache}"
            )
        if self.denoiser.learn_variance != self.diffusion.learn_variance:
            raise ValueError(
                f"denoiser.learn_variance must be {str(self.diffusion.learn_variance).lower()} for this diffusion "
                f"(kind={self.diffusion.kind}, variance={self.diffusion.variance}), "
                f"got {str(self.denoiser.learn_variance).lower()}"
            )


@dataclass(kw_only=True, slots=True)
class GPTModuleConfig:
    """Everything about the crystal GPT's stage but its data: the `gpt_module` group."""

    gpt_ckpt_path: str | None = None
    """Fine-tuning: path or name of the base, a checkpoint of this stage. Its size, statistics and conditions stay,
    whatever the other settings say."""
    mode: GPTMode = GPTMode.SYMMETRY
    """`symmetry` describes crystals by space group and orbits, `p1` by all their atoms."""
    symprec: float = SYMPREC
    """Å; tolerance of the symmetry."""
    fallback: float | None = FALLBACK_SYMPREC
    """Å; tolerance of crystals that the first one describes wrongly; null: these are rejected."""
    equivalents: bool = False
    """Show each crystal in one of its equivalent descriptions (other origins, mirrored axes) instead of always in
    the canonical one."""
    size: GPTSize = field(default_factory=GPTSize)
    lattice_density: LatticeDensity = LatticeDensity.AR
    """`ar` tells the cell by a mixture of Gaussians for one component after the other, `gmm` by one mixture with full
    covariances for all, `flow` by an autoregressive flow of splines (`pip install 'latentite[flow]'`)."""
    coord_density: CoordDensity = CoordDensity.BINS
    """`bins` scores places by their distances; `von_mises`, `wrapped_normal` and `wrapped_cauchy` tell each coordinate
    by a mixture on the circle, which sees no distances."""
    smoothing: float = 0.3
    """Share of the target of a fine bin of a coordinate that its neighbours get; for `coord_density: bins`."""
    condition_module: ConditionModuleOptions | None = None
    """Training of the conditions of `data.target_condition`; null for an unconditional model."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05)
    )
    scheduler: SchedulerConfig = field(
        default_factory=lambda: SchedulerConfig(
            name=SchedulerName.COSINE, warmup_steps=200, min_lr_ratio=0.02
        )
    )
    ema: EMAConfig = field(default_factory=EMAConfig)

    def __post_init__(self) -> None:
        check_size(self.size)
        for key in ("symprec", "fallback"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"{key} must be a positive number of Å, got {value}")
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {self.smoothing}")


@dataclass(kw_only=True, slots=True)
class TrainVAEConfig(RunConfig):
    """A run of stage 1."""

    task_name: str = "train_vae"
    vae_module: VAEModuleConfig = field(default_factory=VAEModuleConfig)


@dataclass(kw_only=True, slots=True)
class TrainLDMConfig(RunConfig):
    """A run of stage 2."""

    task_name: str = "train_ldm"
    ldm_module: LDMModuleConfig = field(default_factory=LDMModuleConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_conditions(self.data.conditions, self.ldm_module.condition_module)


@dataclass(kw_only=True, slots=True)
class TrainGPTConfig(RunConfig):
    """A run of the crystal GPT's stage."""

    task_name: str = "train_gpt"
    gpt_module: GPTModuleConfig = field(default_factory=GPTModuleConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        names, module = self.data.conditions, self.gpt_module
        check_conditions(names, module.condition_module, section="gpt_module")
        if module.mode is GPTMode.P1 and SPACE_GROUP in names:
            raise ValueError(
                f"data.target_condition must not hold {SPACE_GROUP} with gpt_module.mode=p1, where it is 1 for every "
                "crystal; leave it out"
            )
