"""The `latentite` command: one file per subcommand."""
