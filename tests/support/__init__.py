"""What tests build with: slides, stores, runs, clusters, browsers."""
