"""From files of crystals to batches: readers, canonical form, cache, samplers, augmentation, named datasets."""
