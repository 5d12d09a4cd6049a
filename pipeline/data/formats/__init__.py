"""Readers of image formats: each turns a file's bytes into a `Raster`, or raises a `RejectedImageError`."""
