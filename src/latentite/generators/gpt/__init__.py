"""The crystal GPT as a generator."""
