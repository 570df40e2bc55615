"""Images on disk or in a package -> uint8 arrays, decoded once -> augmented, normalized batches on the device."""
