"""Rewards: what a policy is taught, from structures to one number each; anyone can write one."""
