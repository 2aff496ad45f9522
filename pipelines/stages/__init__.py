"""What each kind of artifact is built by."""
