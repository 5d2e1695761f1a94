"""The foundation of all rooms: errors, files, configs, geometry, progress."""
