"""The workflow from images to a scored and reported network."""
