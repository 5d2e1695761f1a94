"""The results folder of ``wsiad heatmap``: what is in it, who writes it and who reads it."""
