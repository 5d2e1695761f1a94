"""What every room stands on: errors, files, configs, geometry, progress."""
