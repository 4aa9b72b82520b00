"""The crystal GPT's network: tokens, trunk, and heads for letters, elements, cells and places."""
