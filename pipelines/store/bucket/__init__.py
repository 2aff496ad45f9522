"""Store in a bucket: objects, leases, publication and the local cache."""
