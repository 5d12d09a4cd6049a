"""SRResNet and what surrounds it, in PyTorch alone: network, degradation, losses, metrics."""
