"""Training: the loop, and what makes it bounded, stopped early and resumable."""
