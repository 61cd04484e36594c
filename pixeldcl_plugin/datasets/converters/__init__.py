"""What writes data sets."""
