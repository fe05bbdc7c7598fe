"""Where the clients of a round run: in this process, or side by side in worker processes.

Executors differ in time alone: a client's update depends on its task and on the seed, and outcomes come in the order of
the cohort, so that every executor, with any number of workers, gives the same bits.
"""
