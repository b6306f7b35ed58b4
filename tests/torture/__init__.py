"""Builds killed by SIGKILL at random moments, again and again; each must end in the bytes of an undisturbed one.

    python -m tests.torture --trials 1000 --seed 0      # `make torture`
    python -m tests.torture --sabotage manifest         # the same with a broken build: must be caught

moments    when a build kills itself: after so many seconds, calls, or calls that change the disk
builder    a build in a process of its own
sabotage   ways of writing that look right and are not
trial      kill, look, go on, kill again, compare
"""
