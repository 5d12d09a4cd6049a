"""Train a grid of cells with Ray Tune, compare them, and keep their records."""
