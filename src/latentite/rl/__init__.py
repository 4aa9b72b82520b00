"""Stage 3: reinforcement learning of a generator towards rewards."""
