"""What all other packages build on: runs, settings, storage, leases and Ray."""
