"""Commands of igdit, one file each."""
