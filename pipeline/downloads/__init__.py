"""Download files from the web, resumed after an interruption and checked."""
