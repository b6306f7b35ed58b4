"""Images grouped by WordNet id: which variant of ImageNet lies in a folder, and its images, from folders and tars."""
