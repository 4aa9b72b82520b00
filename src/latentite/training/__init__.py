"""Training: the only package that imports Lightning. Short modules, shared by all stages."""
