"""Raw datasets become shard sets: readers, taxonomies, the build. ``seg-prep --help``."""
