"""Workers that are jobs of SLURM.

`profile` says what a site's jobs ask for, `script` writes one, `queue` talks to SLURM, `jobs` keeps
as many as are wanted, `certificates` let them and nobody else talk to the scheduler, and `cluster`
joins these for as long as a pool is open.
"""
