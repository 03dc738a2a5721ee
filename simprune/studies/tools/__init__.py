"""What studies are built from: removals, attacks, matches of layers, related data sets, and their statistics."""
