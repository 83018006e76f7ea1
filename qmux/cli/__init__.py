"""The commands ``qmuxd``, ``qmuxc`` and ``qmux``: arguments in, text and an exit code out."""
