"""The parts of a build, which ``prep.pipeline`` puts together.

settings, plan      what is asked for; which samples that is, in chunks
worker, encode      chunks -> encoded members, in parallel and in order
writer              encoded members -> partial shards (`shards.shardfile`)
journal, state      how far the build has got, so that it can go on
counts, statistics  what was counted, and stats.json
outdir, publish     whose folder it is; from partial shards to a published set
"""
