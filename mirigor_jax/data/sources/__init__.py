"""Sources of images, with one module for each format. `table` has all of them by name."""
