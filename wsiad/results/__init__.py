"""Write and read the results folder of ``wsiad heatmap``."""
