"""Machine-learned potentials behind one small protocol, relaxation, convex hull and element references."""
