"""Where evaluation units are played: in this process, or on a Dask cluster."""
