"""The parts of a build, which ``prep.pipeline`` puts together.

settings, plan      what is asked for; which samples that is, in chunks
source, sources     what a sample was made of, and the list of that which is published
worker, encode      chunks -> encoded members, in parallel and in order
writer              encoded members -> partial shards (`shards.shardfile`)
journal, state      how far the build has got, so that it can go on
unchanged           which of that still is what the source gives
counts, statistics  what was counted, and stats.json
known, previous     what an update finds in the set that is there
reuse, update       which of its shards stay, and how the new set takes its place
outdir, publish     whose folder it is; from partial shards to a published set
"""
