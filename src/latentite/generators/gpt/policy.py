"""The crystal GPT as a policy that reinforcement learning can train (`generators/policy.py`).

Its decisions are the tokens of a crystal, one log-ratio each: the ratio of a whole sequence would be the product of
dozens of them. The policy is the network as it is, in evaluation mode: temperature 1, no top-p, no guidance, no filter
of distances, so that the probabilities of what was drawn are exactly those that training asks for again. Entropy and
divergence are estimated at the decision that was made, which is all that the network's log-probabilities tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.checkpoint import CheckpointRecord, DataCard
from latentite.crystal import CrystalBatch
from latentite.diffusion.noise import seed_uniforms
from latentite.generators.gpt.trajectories import GPTTrajectories, decision_columns
from latentite.generators.latent.chain import SamplingConfig
from latentite.generators.policy import Decision, PolicyPlan, Prompts, Rows, of_members, passes
from latentite.models import gpt_of
from latentite.nn.condition_values import ConditionConfig, condition_values
from latentite.nn.gpt.choices import DrawSettings
from latentite.nn.gpt.network import GPTConfig, GPTMode, GPTNetwork
from latentite.nn.gpt.sample import Sampler, num_uniforms
from latentite.nn.gpt.wishes import Wish, Wishes
from latentite.nn.lora import LoraConfig
from latentite.symmetry.dataset import minkowski_reductions
from latentite.symmetry.orbits import OrbitBatch

_CHAIN = SamplingConfig(steps=50)
"""`rl_module.sampling` where nobody chooses: what differs from it is of denoising chains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTPolicy:
    """A crystal GPT and its frozen reference."""

    network: GPTNetwork
    reference: GPTNetwork
    """The frozen one. Its weights require gradients as those of the network do, although none are ever taken: PyTorch
    chooses between products by that, and the first divergence would be rounding instead of 0."""
    batch_size: int
    """Crystals that are drawn together."""
    conditions: tuple[ConditionConfig, ...] = ()
    """Requests of prompts; the network is told nothing of its other conditions."""

    def to(self, device: torch.device | str) -> GPTPolicy:
        """The same policy with its networks, moved in place, on a device."""
        return replace(self, network=self.network.to(device), reference=self.reference.to(device))

    def compile(self) -> None:
        """Compile the trunk's layers in place, of both networks."""
        for network in (self.network, self.reference):
            for layer in network.gpt.trunk.layers:
                layer.compile(dynamic=True)

    @torch.no_grad()
    def rollout(self, prompts: Prompts) -> GPTTrajectories:
        """One crystal for each prompt, of any number of atoms: a crystal GPT chooses it."""
        values = condition_values(self.conditions, prompts.crystals)
        parts = []
        for members in torch.arange(len(prompts)).split(self.batch_size):
            seeds = [prompts.seeds[i] for i in members.tolist()]
            parts.append(self._drawn(seeds, of_members(values, members)))
        return GPTTrajectories.concatenate(parts)

    def _drawn(self, seeds: Sequence[int], values: dict[str, Tensor]) -> GPTTrajectories:
        """Crystals of these seeds, with the probabilities of their decisions."""
        gpt = self.network.gpt
        uniforms = seed_uniforms(seeds, num_uniforms(gpt.limits.max_orbits)).to(gpt.start.device)
        conditioning = self.network.conditioning(values, num_crystals=len(seeds))
        groups = (1,) if self.network.config.mode is GPTMode.P1 else ()
        drawn = Sampler(gpt, DrawSettings()).draw(
            uniforms,
            condition=None if conditioning is None else conditioning.vector,
            wishes=Wishes.of([Wish(groups=groups)] * len(seeds)) if groups else None,
        )
        lattices = drawn.orbits.primitive_lattices().cpu().numpy()
        reductions = torch.from_numpy(minkowski_reductions(lattices)).to(uniforms.device)
        log_probs, num_decisions = self._log_probs(self.network, drawn.orbits, reductions, values)
        return GPTTrajectories(
            orbits=drawn.orbits,
            reductions=reductions,
            log_probs=log_probs,
            num_decisions=num_decisions,
            values=values,
        )

    def crystals(self, trajectories: GPTTrajectories) -> CrystalBatch:
        """The crystals that orbits stand for, on the CPU."""
        crystals = trajectories.orbits.to_crystals().to("cpu")
        return replace(crystals, frac_coords=crystals.frac_coords.float(), lattice=crystals.lattice.float())

    def passes(
        self,
        trajectories: GPTTrajectories,
        members: Int[Tensor, " member"],
        steps: Int[Tensor, " step"],
        *,
        max_tokens: int | None,
    ) -> Iterator[Rows]:
        """Passes of about `max_tokens` atoms.

        A row is a whole trajectory, since one pass of the network tells all its decisions.
        """
        num_atoms = trajectories.orbits.num_atoms[members]
        for rows in passes(num_atoms, max_tokens):
            yield Rows(trajectory=members[rows], step=steps.expand(len(rows), -1))

    def evaluate(
        self,
        trajectories: GPTTrajectories,
        rows: Rows,
        *,
        is_on_policy: Bool[Tensor, " row"],
        with_reference: bool,
    ) -> Decision:
        """Probabilities of decisions.

        Entropy is estimated by the decision that was made (`sampled_entropy`); there is no closed form of KL.
        """
        asked = trajectories.select(rows.trajectory)
        is_real = rows.step < asked.num_decisions.unsqueeze(-1)
        place = torch.where(is_real, rows.step, 0)

        def of(network: GPTNetwork) -> Float[Tensor, "row step"]:
            every, _ = self._log_probs(network, asked.orbits, asked.reductions, asked.values)
            return torch.where(is_real, every.gather(1, place), 0.0)

        new = of(self.network)
        before = torch.where(is_real, asked.log_probs.gather(1, place), 0.0)
        old = torch.where(is_on_policy.unsqueeze(-1), new.detach(), before)
        to_reference = None
        if with_reference:
            with torch.no_grad():
                reference = of(self.reference)
            to_reference = reference - new
        return Decision(
            is_real=is_real,
            log_ratio=new - old,
            entropy=sampled_entropy(new),
            reference_log_ratio=to_reference,
        )

    def restored(self, state: Mapping[str, Any]) -> GPTTrajectories:
        """Trajectories from the state that a checkpoint holds.

        Raises:
            ValueError: when they are asked for other conditions, or are no trajectories of a crystal GPT.
        """
        wanted = {item.name for item in fields(GPTTrajectories)}
        if set(state) != wanted:
            raise ValueError(
                "ckpt_path must hold trajectories of a crystal GPT, got those of another generator"
            )
        trajectories = GPTTrajectories.restored(state)
        names = [condition.name for condition in self.conditions]
        if sorted(trajectories.values) != sorted(names):
            raise ValueError(
                f"data.target_condition must be [{', '.join(trajectories.values)}] to resume with the trajectories of "
                f"ckpt_path, got [{', '.join(names)}]"
            )
        return trajectories

    def _log_probs(
        self,
        network: GPTNetwork,
        orbits: OrbitBatch,
        reductions: Tensor,
        values: Mapping[str, Tensor],
    ) -> tuple[Float[Tensor, "crystal decision"], Int[Tensor, " crystal"]]:
        """Log-probabilities of each crystal's decisions in order, 0 after the last one, and how many there are."""
        told = network.conditioning(values, num_crystals=len(orbits))
        columns, counts = decision_columns(orbits)
        chosen = network.log_prob(orbits, reductions, told).decisions.gather(1, columns)
        exists = torch.arange(columns.shape[1], device=columns.device) < counts.unsqueeze(-1)
        return torch.where(exists, chosen, 0.0), counts


def sampled_entropy(log_prob: Float[Tensor, "*decision"]) -> Float[Tensor, "*decision"]:
    """Estimate of the entropy of distributions by the one action drawn from each: -log p, unbiased.

    So is its gradient, -log p grad log p (that of -log p itself is 0 on average: it would be noise only).
    """
    value = log_prob.detach()
    return -value * (1.0 + log_prob - value)


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTPolicyBase:
    """A trained crystal GPT that reinforcement learning starts from (`PolicyBase`)."""

    network: GPTNetwork
    settings: GPTConfig
    data: DataCard = field(default_factory=DataCard)
    """Of its training."""
    asked: tuple[ConditionConfig, ...] = ()

    @staticmethod
    def of(record: CheckpointRecord) -> GPTPolicyBase:
        """From a checkpoint, which asks for nothing.

        Raises:
            CheckpointError: when it is of no such model, or config and tensors do not fit.
        """
        network, settings, _ = gpt_of(record)
        return GPTPolicyBase(network=network, settings=settings, data=record.data)

    @property
    def conditions(self) -> Sequence[ConditionConfig]:
        """Those that are asked for."""
        return self.asked

    def asking(self, names: Sequence[str]) -> GPTPolicyBase:
        """Any of the model's conditions may be asked for.

        Raises:
            ValueError: for one that the model does not have.
        """
        module = self.settings.condition_module
        known = {} if module is None else {condition.name: condition for condition in module.conditions}
        if foreign := [name for name in names if name not in known]:
            raise ValueError(
                f"data.target_condition must be some of [{', '.join(known)}], the conditions of "
                f"rl_module.ldm_ckpt_path, got {foreign[0]}"
            )
        return replace(self, asked=tuple(known[name] for name in names))

    def plan(self, sampling: SamplingConfig, *, lora: LoraConfig | None, per_entry: bool) -> PolicyPlan:
        """All weights are trained; arguments as `PolicyBase.plan`.

        A decision has one entry, so that `per_entry` changes nothing.

        Raises:
            ValueError: for adapters, and for settings of denoising chains.
        """
        if lora is not None:
            raise ValueError(
                "rl_module.lora must be null for the generator gpt, of which all weights are trained, got adapters"
            )
        for item in fields(SamplingConfig):
            value, usual = getattr(sampling, item.name), getattr(_CHAIN, item.name)
            if item.name != "batch_size" and value != usual:
                raise ValueError(
                    f"rl_module.sampling.{item.name} must be left at {usual} for the generator gpt, which is trained "
                    f"as it draws by itself (temperature 1), got {value}; leave it out"
                )

        def build() -> GPTPolicy:
            network = GPTNetwork(self.settings)
            network.load_state_dict(self.network.state_dict())
            return GPTPolicy(
                network=network.eval(),
                reference=self.network.eval().requires_grad_(True),
                batch_size=sampling.batch_size,
                conditions=self.asked,
            )

        return PolicyPlan(settings=self.settings, build=build, has_closed_kl=False, base_data=self.data)
