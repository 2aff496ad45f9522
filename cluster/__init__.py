"""Files and scripts for clusters; `cluster.local` starts one on this machine to try things on."""
