"""Upscale image files."""
