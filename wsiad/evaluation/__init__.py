"""Evaluation: slide AUC, FROC and tile AUROC against ground truth."""
