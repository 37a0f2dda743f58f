"""What a stack of levels will cost: the real sync rehearsed without a network, and then timed on links of any speed.

link         latency and bandwidth, and how long a collective takes
tape         what an agent does, in order: fast steps, arithmetic, collectives, and waiting for them
rehearsal    the real stack on a communicator whose other agents are imagined
forecast     the same tape on given links: step time, what of it is waiting, bytes, memory
variants     the stacks that a given one could become
advice       what a run's own waiting says of its tau
"""
