"""Jobs on a Ray cluster: what is sent, and how a job is followed."""
