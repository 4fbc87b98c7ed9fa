"""Objects kept by their IDs, over tables: staging, the commit, loading, and views of records."""
