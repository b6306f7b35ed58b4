"""Whole shard sets made of others, and two of them compared. `seg-shards convert`, `merge`, `subset`, `diff`.

plan       which samples of which sets become the splits of a new one
newset     a folder that appears whole or not at all
write      a plan -> shards, card, statistics, manifest
summary    what card and statistics say: carried over, or counted from labels
convert    the same samples in the other format, losslessly
merge      several sets as one          subset   some samples, splits, scales of one
diff       which samples and pixels of two sets differ
cli        the four commands
"""
