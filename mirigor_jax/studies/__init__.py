"""Studies: grids of runs with one table over them, and other questions asked of many encoders."""
