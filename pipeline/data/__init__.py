"""From source images to a patch set, and from a patch set to training samples."""
