"""Any set of structures in, a table with one row per structure and honest rates out: `latentite.evaluate`."""
