"""Foundation of every room: files, downloads, processes, plain values, progress bars."""
