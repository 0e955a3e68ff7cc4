"""Data sets, augmentation and batches: files to examples, in numpy."""
