"""One file a revision, in order; each can be taken back."""
