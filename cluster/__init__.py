"""Files and scripts for clusters; `cluster.local` starts one on this machine for trying things."""
