"""Load tests: iperf3 and wrk through the real daemons, side by side with other systems, in one run.

``python -m loadtest`` measures and prints; ``loadtest/README.md`` says what each figure is. One more system is one file
in ``loadtest/systems`` (the protocol is ``loadtest.system.System``) and one line in its ``__init__``. ``loadtest.soak``
looks for what grows.
"""
