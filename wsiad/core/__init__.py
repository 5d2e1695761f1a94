"""The ground of all rooms: errors, files, configs, geometry, progress."""
