"""Guards of the gate: each can keep the champion although the test says "better"."""
