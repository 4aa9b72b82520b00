"""Generators of crystals: their protocol, requests and jobs, and a folder for each kind."""
