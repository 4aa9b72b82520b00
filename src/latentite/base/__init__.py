"""What every room stands on: files, downloads, processes, plain values, progress bars."""
