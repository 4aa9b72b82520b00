"""Files of crystals to records and rows: every format that is read."""
