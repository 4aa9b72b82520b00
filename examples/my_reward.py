"""A reward of one's own: crystals of few elements that are abundant in the ground; see docs/rl.md.

latentite reward check examples/my_reward.py:MyReward
python src/train_rl.py experiment=rl_custom_reward rl_module.ldm_ckpt_path=path/to/last.ckpt
"""

import torch

ABUNDANT = {"O", "Si", "Al", "Fe", "Ca", "Na", "Mg", "K", "Ti", "H", "P", "Mn"}


class MyReward:
    def __call__(self, structures, batch):
        shares = []
        for structure in structures:
            fractions = structure.composition.fractional_composition.get_el_amt_dict()
            shares.append(sum(amount for symbol, amount in fractions.items() if symbol in ABUNDANT))
        return torch.tensor(shares)
