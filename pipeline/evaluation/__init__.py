"""Scores of trained networks: PSNR, SSIM and feature distances on held-out images and benchmark sets."""
