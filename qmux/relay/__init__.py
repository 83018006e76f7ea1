"""What is the same for every engine: accept a user, select a client, open, dial, retry, hand off."""
