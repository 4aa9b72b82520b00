"""Networks: plain `nn.Module`s, one per file, each with its `Config` above it."""
