"""Sources of images, one file a format: `table` has all of them by name."""
