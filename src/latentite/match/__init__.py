"""Structure comparison at scale: exact verdicts of pymatgen's `StructureMatcher`, reached with less work."""
