"""The global client pool as one worker sees it: rows, the view made of them, and the choice of a session."""
