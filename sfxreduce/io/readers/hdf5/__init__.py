"""HDF5 files as runs: CXI, NXmx, EIGER masters and their likes."""
