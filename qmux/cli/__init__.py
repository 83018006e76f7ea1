"""The commands ``qmuxd``, ``qmuxc`` and ``qmux``: words in, words and an exit code out."""
