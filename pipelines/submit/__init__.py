"""Jobs on a Ray cluster: describe, check, submit and follow them."""
